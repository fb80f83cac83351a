//! The library from outside: nodes in this process, through the public interface only.

mod one_node;
mod three_nodes;
mod trouble;
