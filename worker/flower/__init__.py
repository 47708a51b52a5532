"""Flower with a login, the run of each task, and pages that start, stop and pause runs.

`guard` lets nobody in without a login, and `logins` slows those that fail; `task_list` is how the tasks of runs look in
Flower's own pages; `mount` puts ours among them: `pages` answers (`page` is what these have in common), `forms` reads
the form and previews it, `templates/` shows it. `database` is what they read.
"""
