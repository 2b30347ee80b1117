//! What the routes work with, and how it is opened: the former life is mended, and what is done from time to time starts.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ampoule_engine::image::registry::Registry;
use ampoule_engine::runtime::Runtime;
use ampoule_plugins::Policies;
use axum::extract::FromRef;

use crate::config::Config;
use crate::images::Images;
use crate::images::builds::Builds;
use crate::jobs::submit::{Desk, Means};
use crate::jobs::{Jobs, Mended, RunMeans};
use crate::metrics::Metrics;
use crate::state::{State, StateError};
use crate::system::System;
use crate::tokens::Tokens;
use crate::uploads::Uploads;

/// What the handlers work with. Cloning shares it.
#[derive(Clone, FromRef)]
pub struct App {
    /// Where jobs are handed in and looked up.
    pub desk: Arc<Desk>,
    /// The images.
    pub images: Images,
    /// The builds.
    pub builds: Builds,
    /// The policies.
    pub policies: Arc<Policies>,
    /// The tokens.
    pub tokens: Tokens,
    /// The uploads.
    pub uploads: Uploads,
    /// The service itself.
    pub system: System,
    /// The longest JSON body, in bytes.
    #[from_ref(skip)]
    pub json_bytes_max: u64,
}

/// Why the service cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The database cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The images cannot be used.
    #[error("could not open the images")]
    Images(#[source] std::io::Error),
    /// The uploads cannot be used.
    #[error("could not open the uploads")]
    Uploads(#[source] std::io::Error),
}

impl App {
    /// Opens everything in the state folder. No job runs before `Jobs::dispatch`.
    ///
    /// # Errors
    /// The first part that cannot be opened.
    pub async fn open(
        config: &Config,
        state: &State,
        runtime: Arc<dyn Runtime>,
        policies: Arc<Policies>,
        draining: Arc<AtomicBool>,
    ) -> Result<App, OpenError> {
        let metrics = Arc::new(Metrics::new());
        let registry = Registry::new(config.registries.clone());
        let reach = config.network.egress.clone().filter(|_| config.network.builds);
        let (bytes_max, cache_bytes_max) = (config.bodies.image_bytes_max, config.build_cache_bytes_max);
        let images = Images::open(&config.state, runtime.clone(), registry, bytes_max, cache_bytes_max, reach).await;
        let images = images.map_err(OpenError::Images)?;
        let builds = Builds::open(state, &config.state).await?;
        let means = RunMeans {
            runtime: runtime.clone(),
            metrics: metrics.clone(),
            concurrency: config.concurrency,
            queue: config.queue,
        };
        let (jobs, mended) = Jobs::open(state, &config.state, means, &images).await?;
        report(mended);
        let uploads = Uploads::open(&config.state, config.bodies.upload_bytes_max).map_err(OpenError::Uploads)?;
        let tokens = Tokens::open(state)?;
        tokio::spawn(jobs.clone().keep_deadlines());
        tokio::spawn(jobs.clone().keep_retention(config.retention));
        tokio::spawn(uploads.clone().keep_retention(config.retention.uploads));
        let desk = Desk::new(Means {
            jobs: jobs.clone(),
            images: images.clone(),
            policies: policies.clone(),
            uploads: uploads.clone(),
            metrics: metrics.clone(),
            limits_default: config.limits_default.clone(),
            limits_ceiling: config.limits_ceiling.clone(),
            grants_network: config.network.jobs,
        });
        let system = System { jobs, metrics, runtime, draining };
        let json_bytes_max = config.bodies.json_bytes_max;
        Ok(App { desk: Arc::new(desk), images, builds, policies, tokens, uploads, system, json_bytes_max })
    }
}

fn report(mended: Mended) {
    if mended == Mended::default() {
        return;
    }
    let Mended { queued, requeued, failed, folders } = mended;
    tracing::info!(queued, requeued, failed, folders, "mended what a former life left");
}
