//! The library from outside: nodes in this process, through the public interface only.

mod admin;
mod api;
mod backup;
mod cluster;
mod damaged;
mod disk;
mod large;
mod life;
mod load;
mod many;
mod members;
mod one_node;
mod outcomes;
mod readers;
mod receipts;
mod repair;
mod snapshots;
mod three_nodes;
mod trouble;
mod turnover;
mod upgrade;
mod upkeep;
mod verify;
mod wait;
