//! The production journal over the simulated disk.

mod asides;
mod crashes;
mod damage;
mod model;
mod relocation;
mod sealed;
