//! Sets Reelring beside other programs, in alternating rounds, and says who wins.
//!
//! Every side is a child process, measured from outside by the same means. The rooms: `rounds` (the order), `usage`
//! (CPU, switches, memory), `statistics` (ratio, interval, verdict), `peer` (programs and servers), `result` (what comes
//! out), and one module for each thing that is compared.

pub mod machine;
pub mod peer;
pub mod result;
pub mod rounds;
pub mod statistics;
pub mod stop;
pub mod usage;
