//! Every route, on one page.

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use axum::{Extension, Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;
use crate::images::builds::routes as builds;
use crate::jobs::routes as jobs;
use crate::request::JsonBytesMax;
use crate::{door, images, openapi, policies, system, tokens, uploads};

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Over the unix socket.
    Unix,
    /// Over TCP.
    Tcp,
}

/// All routes behind the door of an entrance.
pub fn router(app: App, entrance: Entrance) -> Router {
    let metrics = app.system.metrics.clone();
    let tokens = app.tokens.clone();
    let json_bytes_max = JsonBytesMax(app.json_bytes_max);
    let routes = Router::new()
        .route("/v1/jobs", get(jobs::list).post(jobs::create))
        .route("/v1/jobs:batch", post(jobs::create_batch))
        .route("/v1/jobs/{id}", get(jobs::get).delete(jobs::delete))
        .route("/v1/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v1/jobs/{id}/logs", get(jobs::logs))
        .route("/v1/jobs/{id}/events", get(jobs::follow))
        .route("/v1/jobs/{id}/artifacts", get(jobs::artifacts))
        .route("/v1/jobs/{id}/artifacts/{*path}", get(jobs::artifact))
        .route("/v1/uploads", put(uploads::create))
        .route("/v1/images", get(images::catalog::list))
        .route("/v1/images:history", get(images::catalog::history))
        .route("/v1/images:du", get(images::catalog::du))
        .route("/v1/images:tag", post(images::tags::tag))
        .route("/v1/images:prune", post(images::removal::prune))
        .route("/v1/images:save", get(images::save::save))
        .route("/v1/images:load", post(images::intake::load))
        .route("/v1/images:pull", post(images::transfers::pull))
        .route("/v1/images:push", post(images::transfers::push))
        .route("/v1/builds", get(builds::list).post(builds::create))
        .route("/v1/builds/caches", get(images::caches::list).delete(images::caches::remove))
        .route("/v1/builds/{id}", get(builds::get).delete(builds::cancel))
        .route("/v1/builds/{id}/logs", get(builds::logs))
        .route("/v1/images:export", get(images::trees::export))
        .route("/v1/images:diff", get(images::trees::diff))
        .route("/v1/images:verify", post(images::trees::verify))
        .route("/v1/images/import", post(images::intake::import))
        .route("/v1/images/{*reference}", get(images::catalog::get).delete(images::removal::remove))
        .route("/v1/policies", get(policies::list))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{name}", axum::routing::delete(tokens::revoke))
        .route("/v1/version", get(system::version))
        .route("/healthz", get(system::healthz))
        .route("/readyz", get(system::readyz))
        .route("/metrics", get(system::metrics))
        .route("/openapi.json", get(openapi::description))
        .fallback(door::no_route)
        .method_not_allowed_fallback(door::no_method)
        .with_state(app)
        // Every body has a bound of its own, in the handler that reads it.
        .layer(DefaultBodyLimit::disable())
        .layer(Extension(json_bytes_max))
        .layer(CatchPanicLayer::custom(door::panicked));
    let guarded = match entrance {
        Entrance::Unix => routes.layer(middleware::from_fn(door::unix)),
        Entrance::Tcp => routes.layer(middleware::from_fn_with_state(tokens, door::tcp)),
    };
    guarded.layer(middleware::from_fn_with_state(metrics, door::observe))
}
