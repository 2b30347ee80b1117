//! What a group has used, for a process that may not touch the group: open descriptors of its counters, passed on.

use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::counters::{Counter, Counters, Totals};
use super::{CgroupError, Group, Usage, Version, used, v1, v2};

/// The plain part of a meter, which travels beside its descriptors.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct MeterTerms {
    version: Version,
    baseline: Totals,
}

#[cfg(test)]
impl MeterTerms {
    /// The terms of a group that has used nothing.
    pub(crate) fn fresh(version: Version) -> MeterTerms {
        MeterTerms { version, baseline: Totals::default() }
    }
}

/// Reads what a group of another process has used.
#[derive(Debug)]
pub struct Meter {
    counters: Box<dyn Counters>,
    baseline: Totals,
}

impl Group {
    /// What another process needs to read the usage since `begin`: terms, and descriptors of files that change
    /// nothing of the group.
    /// `None` where the kernel does not count the memory peak itself (version 2 before 5.19).
    pub fn meter(&self) -> Option<(MeterTerms, Vec<BorrowedFd<'_>>)> {
        let terms = MeterTerms { version: self.version, baseline: self.baseline };
        Some((terms, self.counters.readable()?))
    }
}

impl Meter {
    /// Puts a meter together from what [`Group::meter`] gave; `None` when descriptors are missing.
    pub fn from_parts(terms: MeterTerms, descriptors: Vec<OwnedFd>) -> Option<Meter> {
        let mut descriptors = descriptors.into_iter();
        let mut next = |name: &str| Some(Counter::received(descriptors.next()?, name));
        let counters: Box<dyn Counters> = match terms.version {
            Version::V1 => Box::new(v1::V1Counters::received(&mut next)?),
            Version::V2 => Box::new(v2::V2Counters::received(&mut next)?),
        };
        Some(Meter { counters, baseline: terms.baseline })
    }

    /// What was used since the group's `begin`.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        Ok(used(&self.baseline, &self.counters.totals()?, self.counters.memory_peak_bytes()?))
    }
}
