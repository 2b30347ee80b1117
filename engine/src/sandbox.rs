//! Starting, following and ending sandboxes. The work is done by the launcher, a process of one thread that holds the
//! privileges; `client` is the service's end of the conversation with it.

pub mod artifacts;
pub mod client;
mod descriptors;
mod exec;
mod files;
mod handshake;
mod init;
pub mod launcher;
mod place;
mod pool;
mod verdict;
mod worker;
mod zygote;
