//! What builds keep for the next ones: the caches of `RUN --mount=type=cache`.

use ampoule_client::types::{BuildCache, BuildCacheList, BuildCachesRemoved, Problem};
use ampoule_engine::image::store::CacheInfo;
use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Images;
use crate::problem::Refused;
use crate::request::Query;

/// Which caches are removed.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct CachesQuery {
    /// The id, as in the Dockerfile; all without one.
    id: Option<String>,
}

/// Lists what `RUN --mount=type=cache` has kept.
#[utoipa::path(get, operation_id = "listBuildCaches", path = "/v1/builds/caches", tag = "images",
    responses((status = 200, description = "The caches", body = BuildCacheList)))]
pub async fn list(State(images): State<Images>) -> Json<BuildCacheList> {
    let caches: Vec<BuildCache> = images.caches.list().into_iter().map(document).collect();
    Json(BuildCacheList { size_bytes: total(&caches), size_bytes_max: images.caches.bytes_max(), caches })
}

/// Removes caches of builds, but those that are in use.
#[utoipa::path(delete, operation_id = "removeBuildCaches", path = "/v1/builds/caches", tag = "images",
    params(CachesQuery),
    responses((status = 200, description = "What is gone, and what stays", body = BuildCachesRemoved),
        (status = 400, description = "The query cannot be read", body = Problem)))]
pub async fn remove(
    State(images): State<Images>,
    Query(CachesQuery { id }): Query<CachesQuery>,
) -> Result<Json<BuildCachesRemoved>, Refused> {
    let (removed, kept) = images.caches.remove(id.as_deref()).await;
    let documents = |caches: Vec<CacheInfo>| caches.into_iter().map(document).collect::<Vec<_>>();
    let removed = documents(removed);
    Ok(Json(BuildCachesRemoved { freed_bytes: total(&removed), removed, kept: documents(kept) }))
}

fn total(caches: &[BuildCache]) -> u64 {
    caches.iter().filter_map(|cache| cache.size_bytes).fold(0, u64::saturating_add)
}

fn document(info: CacheInfo) -> BuildCache {
    let time = |unix_ms: u64| Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok();
    BuildCache {
        id: info.id,
        folder: info.folder.name().to_owned(),
        size_bytes: info.bytes,
        created: time(info.created_ms),
        last_used: time(info.used_ms),
        in_use: info.in_use,
    }
}
