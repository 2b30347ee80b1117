//! Hosts policies.
