"""`make test-compose`: the image and docker-compose.yml on a real engine, of this machine's own packages."""
