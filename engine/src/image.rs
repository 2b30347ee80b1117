//! Images: names, content by digest, unpacked layers. What comes from outside is hostile here: every byte of an
//! archive or a manifest is bounded and verified before it counts.

pub mod archive;
pub mod compression;
pub mod config;
pub mod digest;
pub mod layer;
pub mod manifest;
pub mod reference;
pub mod registry;
pub mod store;
pub mod tree;
