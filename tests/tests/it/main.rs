//! Roost as its users meet it, on real computers. One program, so that tests of different things run side by side, and
//! so that it is linked once.

mod apps;
mod chaos;
mod clients;
mod command_line;
mod desktop;
mod events;
mod faults;
mod files;
mod frozen;
mod full;
mod input;
mod isolation;
mod life;
mod memory;
mod metrics;
mod ports;
mod regions;
mod secrets;
mod seed;
mod servers;
mod setup;
mod shell;
mod snapshots;
mod terminal;
