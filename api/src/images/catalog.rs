//! What images there are, and what is known of each.

use ampoule_client::types::{self, ImageHistory, ImageList, ImagesUsage, Problem};
use axum::Json;
use axum::extract::{Path as PathOf, State};
use utoipa::IntoParams;

use super::conditions::filter;
use super::document::{detailed, listed, step, usage};
use super::{Images, unresolved};
use crate::problem::{INVALID_QUERY, Refused};
use crate::request::Fields;

/// Most images of one page, and as many as a page has that asks for no number.
const PAGE_MAX: usize = 1000;

/// Which images are listed.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query; several fields may come several times")]
pub struct ListQuery {
    /// A pattern of names, as in `debian:*`; of several, one has to fit.
    reference: Option<Vec<String>>,
    /// `true`: only those without a name; `false`: only those with one.
    dangling: Option<bool>,
    /// A label, as in `key` or `key=value`; of several, all have to be there.
    label: Option<Vec<String>>,
    /// Only those that were made before this image.
    before: Option<String>,
    /// Only those that were made after this image.
    since: Option<String>,
    /// Only those that were made before this time, or so long ago, as in `24h`.
    until: Option<String>,
    /// At most so many, up to 1000.
    limit: Option<u32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// Lists images, by name. One with several names comes several times, and those without a name come last.
#[utoipa::path(get, operation_id = "listImages", path = "/v1/images", tag = "images", params(ListQuery),
    responses((status = 200, description = "The images", body = ImageList),
        (status = 400, description = "A condition cannot be used", body = Problem)))]
pub async fn list(State(images): State<Images>, mut fields: Fields) -> Result<Json<ImageList>, Refused> {
    let filter = filter(&images, &mut fields)?;
    let limit = fields.one::<usize>("limit")?.unwrap_or(PAGE_MAX);
    let cursor = fields.one::<String>("cursor")?;
    fields.none_left()?;
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Refused::new(INVALID_QUERY, format!("limit: {limit} is not between 1 and {PAGE_MAX}")));
    }
    let mut found: Vec<_> = images.store.find_all(&filter).into_iter().map(listed).collect();
    found.retain(|image| cursor.as_ref().is_none_or(|cursor| place(image) > *cursor));
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| has_more).map(place);
    Ok(Json(ImageList { images: found, next }))
}

/// Where an image stands in the list: by name, those without one last, then by digest.
fn place(image: &types::Image) -> String {
    // A tilde comes after all that a name begins with, and a space before all that it goes on with.
    format!("{} {}", image.reference.as_deref().unwrap_or("~"), image.digest)
}

/// Tells all that is known of an image. The name is the rest of the path; slashes need no escape.
#[utoipa::path(get, operation_id = "getImage", path = "/v1/images/{reference}", tag = "images",
    params(("reference" = String, Path, description = "A name, a digest, or the first 12 or more digits of one")),
    responses((status = 200, description = "The image", body = types::Image),
        (status = 404, description = "There is none", body = Problem)))]
pub async fn get(
    State(images): State<Images>,
    PathOf(reference): PathOf<String>,
) -> Result<Json<types::Image>, Refused> {
    let found = images.blocking(move |images| images.store.inspect(&reference)).await;
    let found = found.map_err(|error| Refused::internal(&error))?.map_err(|error| unresolved(&error))?;
    Ok(Json(detailed(found)))
}

/// Which image's history is told.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query")]
pub struct HistoryQuery {
    /// A name, a digest, or the first 12 or more digits of one.
    reference: String,
}

/// Tells the steps that made an image, newest first, with the layer that came of each.
#[utoipa::path(get, operation_id = "getImageHistory", path = "/v1/images:history", tag = "images", params(HistoryQuery),
    responses((status = 200, description = "The steps", body = ImageHistory),
        (status = 404, description = "There is no such image", body = Problem)))]
pub async fn history(State(images): State<Images>, mut fields: Fields) -> Result<Json<ImageHistory>, Refused> {
    let reference = fields.one::<String>("reference")?;
    fields.none_left()?;
    let reference = reference.ok_or_else(|| Refused::new(INVALID_QUERY, "`reference` is missing"))?;
    let found = images.blocking(move |images| images.store.inspect(&reference)).await;
    let found = found.map_err(|error| Refused::internal(&error))?.map_err(|error| unresolved(&error))?;
    let steps = found.history.iter().rev().map(step).collect();
    Ok(Json(ImageHistory { digest: found.summary.digest, steps }))
}

/// Tells what images take on disk: what several of them share, what each has alone, and what pruning would free.
#[utoipa::path(get, operation_id = "getImagesUsage", path = "/v1/images:du", tag = "images",
    responses((status = 200, description = "What they take", body = ImagesUsage)))]
pub async fn du(State(images): State<Images>) -> Result<Json<ImagesUsage>, Refused> {
    let found = images.blocking(|images| images.store.disk_usage()).await;
    Ok(Json(usage(found.map_err(|error| Refused::internal(&error))?)))
}
