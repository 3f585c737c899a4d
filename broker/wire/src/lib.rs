//! AMQP 0-9-1 codec: frames, methods, content headers and field tables, without I/O.
