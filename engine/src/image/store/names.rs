//! Giving an image another name.

use std::sync::PoisonError;

use super::import::with_imported;
use super::{ResolveError, Store, StoreError, find, index};
use crate::image::reference::{Reference, ReferenceError};

/// What naming did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// The digest of the image.
    pub digest: String,
    /// The name that it has now.
    pub name: String,
    /// The digest of the image that had the name before, if that is another one; it stays without this name.
    pub taken_from: Option<String>,
}

/// Why an image did not get a name.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// The source leads to no image.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The new name is none.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// The new name has a digest.
    #[error("`{0}` has a digest and cannot be given as a name\nhint: the digest of an image follows from its content")]
    Pinned(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Gives the image that `source` stands for one more name. An image that had the name loses it, and stays. It is on
    /// disk when this returns. Blocks.
    ///
    /// # Errors
    /// A source that leads to no image, a name that no image can have, a store that fails.
    pub fn tag(&self, source: &str, name: &str) -> Result<Tagged, TagError> {
        let name = Reference::parse(name)?;
        if name.digest().is_some() {
            return Err(TagError::Pinned(name.to_string()));
        }
        let _changes = self.leases();
        let current = self.records.read().unwrap_or_else(PoisonError::into_inner).clone();
        let found = find(&current, source)?;
        let record = &current[found.records[0]];
        if let Err(damage) = &record.image {
            return Err(ResolveError::Damaged { reference: source.to_owned(), damage: damage.clone() }.into());
        }
        let before = current.iter().find(|record| record.entry.name.as_ref() == Some(&name));
        let taken_from = before.filter(|record| record.entry.digest != found.digest);
        let next = with_imported(&current, &[record.named(Some(&name))]);
        index::write(&self.folder, next.iter().map(|record| &record.entry))?;
        let taken_from = taken_from.map(|record| record.entry.digest.to_string());
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(Tagged { digest: found.digest.to_string(), name: name.to_string(), taken_from })
    }
}
