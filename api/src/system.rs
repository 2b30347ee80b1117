//! The service about itself: health, readiness, version, metrics and its own description.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ampoule_client::types::{Health, Version};
use ampoule_engine::runtime::Runtime;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::jobs::Jobs;
use crate::metrics::Metrics;

/// What the service knows of itself. Cloning shares it.
#[derive(Clone)]
pub struct System {
    /// The jobs, for their count.
    pub jobs: Jobs,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// What runs sandboxes, for its census.
    pub runtime: Arc<dyn Runtime>,
    /// Whether the service is being stopped.
    pub draining: Arc<AtomicBool>,
}

fn health(status: &str) -> Json<Health> {
    Json(Health { status: status.to_owned() })
}

/// Says that the service lives.
#[utoipa::path(get, operation_id = "getHealth", path = "/healthz", tag = "system", responses((status = 200, description = "What was asked for", body = Health)))]
pub async fn healthz() -> Json<Health> {
    health("ok")
}

/// Says whether the service takes jobs.
#[utoipa::path(get, operation_id = "getReadiness", path = "/readyz", tag = "system",
    responses((status = 200, description = "What was asked for", body = Health), (status = 503, description = "It is being stopped", body = Health)))]
pub async fn readyz(State(system): State<System>) -> (StatusCode, Json<Health>) {
    if system.draining.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, health("draining"))
    } else {
        (StatusCode::OK, health("ok"))
    }
}

/// Says what answers.
#[utoipa::path(get, operation_id = "getVersion", path = "/v1/version", tag = "system", responses((status = 200, description = "What was asked for", body = Version)))]
pub async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION").to_owned(), api: "v1".to_owned() })
}

/// Measurements in prometheus' text format.
#[utoipa::path(get, operation_id = "getMetrics", path = "/metrics", tag = "system",
    responses((status = 200, description = "The measurements", body = String, content_type = "text/plain")))]
pub async fn metrics(State(system): State<System>) -> Response {
    let (queued, running) = system.jobs.count();
    let text = system.metrics.text(queued, running, system.runtime.census());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
