//! AMQP connection and channel state machines, without I/O.
