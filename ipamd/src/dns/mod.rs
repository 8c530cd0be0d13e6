//! Names of containers: who is called what on which network, and who may ask.
//!
//! Owns the words ([`DomainName`]) and the [`Book`], which answers what a name of a network means, and the resolver: what a question
//! is answered ([`answer`]), what others answered ([`cache`]), messages ([`wire`]). All are pure but [`server`], which has the
//! sockets. The programs answer from rows that are made of the same book, so both give the same answers.
//!
//! Invariants: a name is known on the networks of its endpoint and nowhere else; an asker is answered from the networks that its
//! sandbox is on and from no other.

pub mod answer;
pub mod book;
pub mod cache;
pub mod host;
pub mod name;
pub mod quota;
pub mod resolv;
pub mod server;
pub mod wire;

pub use book::{Asker, Book, Host, Service, Zone};
pub use host::{Called, NameRefusal, Said};
pub use name::{DomainName, ParseDomainNameError};
pub use server::{
    Answered, DnsOptions, DnsServer, INSIDE, Names, NetworkDns, SandboxError, Sandboxes, Transport,
};
