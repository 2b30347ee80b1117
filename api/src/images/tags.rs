//! Names for images.

use ampoule_client::types::{ImageTag, ImageTagged, Problem};
use ampoule_engine::image::store::TagError;
use axum::Json;
use axum::extract::State;

use super::intake::unstored;
use super::{Images, unresolved};
use crate::problem::{Refused, sentence};
use crate::request::JsonBody;

/// Gives an image one more name. An image that had the name loses it, and stays.
#[utoipa::path(post, operation_id = "tagImage", path = "/v1/images:tag", tag = "images", request_body = ImageTag,
    responses((status = 200, description = "It has the name", body = ImageTagged),
        (status = 404, description = "There is no such image", body = Problem),
        (status = 422, description = "The name cannot be used", body = Problem)))]
pub async fn tag(
    State(images): State<Images>,
    JsonBody(tag): JsonBody<ImageTag>,
) -> Result<Json<ImageTagged>, Refused> {
    let tagged = images.blocking(move |images| images.store.tag(&tag.source, &tag.name)).await;
    let tagged = tagged.map_err(|error| Refused::internal(&error))?.map_err(|error| untagged(&error))?;
    Ok(Json(ImageTagged { digest: tagged.digest, name: tagged.name, taken_from: tagged.taken_from }))
}

fn untagged(error: &TagError) -> Refused {
    match error {
        TagError::Resolve(error) => unresolved(error),
        TagError::Name(_) | TagError::Pinned(_) => {
            let (detail, hint) = sentence(error);
            let refused = Refused::field("name", detail);
            if let Some(hint) = hint { refused.hint(hint) } else { refused }
        }
        TagError::Store(error) => unstored(error),
    }
}
