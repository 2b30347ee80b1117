//! Taking names away, and letting go what nobody needs any more.

use ampoule_client::types::{ImageRemoved, ImagesPruned, Problem};
use ampoule_engine::image::store::{PruneError, PruneRequest, RemoveError};
use axum::Json;
use axum::extract::{Path as PathOf, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::conditions::filter;
use super::document::pruned;
use super::intake::unstored;
use super::{Images, told, unresolved};
use crate::problem::{IMAGE_IN_USE, PLAN_CHANGED, Refused, SEVERAL_NAMES};
use crate::request::{Fields, Query};

/// How much is taken away.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default, deny_unknown_fields)]
pub struct RemoveQuery {
    /// Takes all names of an image that is named by its digest, and also those of one that is in use: it stays without
    /// a name until it is pruned.
    force: bool,
}

/// Takes a name away, and the image with it when that was its last one and nobody uses it.
#[utoipa::path(delete, operation_id = "removeImage", path = "/v1/images/{reference}", tag = "images",
    params(("reference" = String, Path, description = "A name, a digest, or the first 12 or more digits of one"), RemoveQuery),
    responses((status = 200, description = "What is gone", body = ImageRemoved),
        (status = 404, description = "There is none", body = Problem),
        (status = 409, description = "It is in use, or has several names", body = Problem)))]
pub async fn remove(
    State(images): State<Images>,
    PathOf(reference): PathOf<String>,
    Query(RemoveQuery { force }): Query<RemoveQuery>,
) -> Result<Json<ImageRemoved>, Refused> {
    let removed = images.blocking(move |images| images.store.remove(images.runtime.as_ref(), &reference, force)).await;
    let removed = removed.map_err(|error| Refused::internal(&error))?.map_err(|error| unremoved(&error))?;
    Ok(Json(ImageRemoved {
        untagged: removed.untagged,
        removed: removed.removed,
        freed_bytes: removed.freed_bytes,
        freed_unpacked_bytes: removed.freed_unpacked_bytes,
    }))
}

fn unremoved(error: &RemoveError) -> Refused {
    match error {
        RemoveError::Resolve(error) => unresolved(error),
        RemoveError::InUse { .. } => told(IMAGE_IN_USE, error),
        RemoveError::SeveralNames { .. } => told(SEVERAL_NAMES, error),
        RemoveError::Store(error) => unstored(error),
        RemoveError::Layer { .. } => Refused::internal(error),
    }
}

/// Which images are pruned.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query; several fields may come several times")]
pub struct PruneQuery {
    /// Whether nothing goes yet and the answer only says what would. `true` unless it is `false`.
    dry_run: Option<bool>,
    /// `plan` of a dry run: when something else would go than it showed, nothing goes.
    plan: Option<String>,
    /// Whether images with names go as well, if nobody uses them.
    all: Option<bool>,
    /// Only those with this label, as in `key` or `key=value`; of several, all have to be there.
    label: Option<Vec<String>>,
    /// Only those without this label; of several, none may be there.
    without_label: Option<Vec<String>>,
    /// Only those that were made before this time, or so long ago, as in `24h`.
    until: Option<String>,
}

/// Shows which images nobody needs, and lets them go when `dry_run=false` is said.
#[utoipa::path(post, operation_id = "pruneImages", path = "/v1/images:prune", tag = "images", params(PruneQuery),
    responses((status = 200, description = "What goes, or would", body = ImagesPruned),
        (status = 400, description = "A condition cannot be used", body = Problem),
        (status = 409, description = "Something else would go than was shown", body = Problem)))]
pub async fn prune(State(images): State<Images>, mut fields: Fields) -> Result<Json<ImagesPruned>, Refused> {
    let request = PruneRequest { all: fields.one("all")?.unwrap_or(false), filter: filter(&images, &mut fields)? };
    let dry_run = fields.one("dry_run")?.unwrap_or(true);
    let expected = fields.one::<String>("plan")?;
    fields.none_left()?;
    let plan = images.blocking(move |images| {
        if dry_run {
            return Ok(images.store.plan_prune(&request));
        }
        images.store.prune(images.runtime.as_ref(), &request, expected.as_deref())
    });
    let plan = plan.await.map_err(|error| Refused::internal(&error))?.map_err(|error| match error {
        PruneError::Changed(_) => told(PLAN_CHANGED, &error),
        PruneError::Remove(error) => unremoved(&error),
    })?;
    Ok(Json(pruned(plan, dry_run)))
}
