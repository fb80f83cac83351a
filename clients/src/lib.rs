//! Shoal under clients that know nothing of it. Everything is in `tests/` and `examples/`: a package of its own, so that
//! nobody who uses Shoal has these clients in a lock file.
