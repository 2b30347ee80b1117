//! The description of the API, made from the code: OpenAPI 3.1. A committed copy is kept true by a test.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::{Content, OpenApi as Document, RefOr};
use utoipa::{Modify, OpenApi};

use crate::images::builds::routes as builds;
use crate::{images, jobs, policies, system, tokens, uploads};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Ampoule",
        description = "Runs untrusted commands in sealed containers. Errors are RFC 9457 problem documents with a \
            stable `code`. On TCP every request needs `Authorization: Bearer`; the unix socket needs none.",
    ),
    tags(
        (name = "jobs", description = "Run commands and get their output, ending, figures and files"),
        (name = "images", description = "What jobs run in"),
        (name = "builds", description = "Images from Dockerfiles"),
        (name = "policies", description = "Who decides what may run"),
        (name = "tokens", description = "Who may ask over TCP; managed over the unix socket only"),
        (name = "system", description = "The service itself"),
    ),
    paths(
        jobs::routes::create, jobs::routes::create_batch, jobs::routes::list, jobs::routes::get, jobs::routes::cancel,
        jobs::routes::delete, jobs::routes::logs, jobs::routes::follow, jobs::routes::artifacts,
        jobs::routes::artifact, uploads::create,
        images::catalog::list, images::catalog::get, images::catalog::history, images::catalog::du,
        images::intake::import, images::intake::load, images::save::save, images::tags::tag,
        images::removal::remove, images::removal::prune,
        images::trees::export, images::trees::diff, images::trees::verify,
        images::transfers::pull, images::transfers::push,
        builds::create, builds::list, builds::get, builds::cancel, builds::logs,
        images::caches::list, images::caches::remove,
        policies::list,
        tokens::create, tokens::list, tokens::revoke,
        system::healthz, system::readyz, system::version, system::metrics, description,
    ),
    modifiers(&Problems),
)]
struct Description;

/// Every body of a refusal is a problem document, and of its type.
struct Problems;

impl Modify for Problems {
    fn modify(&self, document: &mut Document) {
        let operations =
            document.paths.paths.values_mut().flat_map(|item| {
                [&mut item.get, &mut item.post, &mut item.put, &mut item.delete].into_iter().flatten()
            });
        for response in operations.flat_map(|operation| operation.responses.responses.values_mut()) {
            let RefOr::T(response) = response else { continue };
            let is_problem = match response.content.get("application/json") {
                Some(RefOr::T(Content { schema: Some(RefOr::Ref(schema)), .. })) => {
                    schema.ref_location.ends_with("/Problem")
                }
                _ => false,
            };
            if is_problem && let Some(content) = response.content.shift_remove("application/json") {
                response.content.insert("application/problem+json".to_owned(), content);
            }
        }
    }
}

/// The description as JSON, the same bytes every time.
pub fn json() -> &'static str {
    static JSON: OnceLock<String> = OnceLock::new();
    JSON.get_or_init(|| Description::openapi().to_pretty_json().expect("the description is plain data"))
}

/// The description of this API.
#[utoipa::path(get, operation_id = "getDescription", path = "/openapi.json", tag = "system",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json", body = Object)))]
pub async fn description() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json()).into_response()
}
