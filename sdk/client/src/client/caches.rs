//! The routes of what builds keep for the next ones.

use super::{Call, Client, ClientError, with_query};
use crate::types::{BuildCacheList, BuildCachesRemoved};

impl Client {
    /// What `RUN --mount=type=cache` has kept.
    pub async fn build_caches(&self) -> Result<BuildCacheList, ClientError> {
        self.get("/v1/builds/caches").await
    }

    /// Removes the caches with an id, or all, but those that are in use.
    pub async fn remove_build_caches(&self, id: Option<&str>) -> Result<BuildCachesRemoved, ClientError> {
        self.json(Call::delete(&with_query("/v1/builds/caches", &[("id", id)])), None::<&()>).await
    }
}
