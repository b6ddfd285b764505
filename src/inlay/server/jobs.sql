-- The tables of the store, inlay.server.jobs; times are in seconds since 1970.
PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, client TEXT NOT NULL,
    key TEXT, request TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'queued',
    deaths INTEGER NOT NULL DEFAULT 0, step INTEGER NOT NULL DEFAULT 0,
    total INTEGER NOT NULL DEFAULT 0, error TEXT, created REAL NOT NULL, started REAL,
    finished REAL, files TEXT NOT NULL DEFAULT '[]', records TEXT NOT NULL DEFAULT '[]',
    UNIQUE (client, key));
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    name TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_job ON events (job, id);
CREATE TABLE IF NOT EXISTS files (
    file TEXT PRIMARY KEY, size INTEGER NOT NULL, facts TEXT NOT NULL, used REAL NOT NULL);
CREATE TABLE IF NOT EXISTS uses (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, file TEXT NOT NULL,
    PRIMARY KEY (job, file));
