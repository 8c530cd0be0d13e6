//! Names answered by the programs: what is answered, byte by byte, and what goes on untouched.

mod answers;
mod cost;
mod fuzz;
mod intercept;
mod lab;
mod left;
mod live;
mod message;
mod reference;
