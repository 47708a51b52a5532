(() => {
  const part = id => document.getElementById(id), name = e => e.id || e.getAttribute("href") || e.localName
  const like = n => [...document.querySelectorAll("a,summary,button")].filter(e => name(e) === n)
  const every = setInterval(async () => {
    const active = document.activeElement
    if (document.hidden || active.matches("input,select") || !getSelection().isCollapsed) return
    try {
      const answer = await fetch(location.href)
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html")
      const parts = ["main", "foot"].map(id => [part(id), fresh.getElementById(id)])
      if (parts.some(([, now]) => !now)) throw answer.status
      const folds = new Map([...document.querySelectorAll("details[id]")].map(e => [e.id, e.open]))
      const focus = name(active), place = like(focus).indexOf(active)
      parts.forEach(([old, now]) => old.replaceWith(now))
      document.title = fresh.title
      folds.forEach((open, id) => { if (part(id)) part(id).open = open })
      if (!active.isConnected) {
        const again = like(focus)[place] || part("main"), fold = again.parentElement.closest("details")
        if (fold) fold.open = true
        again.focus({ preventScroll: true })
      }
      if (!part("main").dataset.again) clearInterval(every)
    } catch { part("foot").dataset.away = "" }
  }, document.currentScript.dataset.seconds * 1000)
})()
