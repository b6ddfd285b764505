"""The web page and the HTTP API of `inlay serve`: jobs, their queue, and what keeps it safe"""
