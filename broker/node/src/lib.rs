//! The broker process: sockets, TLS, timers, files, admin HTTP, metrics.
