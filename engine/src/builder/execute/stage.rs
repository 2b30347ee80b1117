//! One stage: its steps one after the other, each known from before or run.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use super::config::Config;
use super::{BuildError, Event, Problem, Site};
use crate::builder::plan::{Action, Base, Origin, Stage, Step};
use crate::image::digest::Digest;
use crate::image::store::{BuiltLayer, StepResult, WorkshopError};
use crate::spec::{LAYERS_MAX, LayerId};

/// What a stage has come to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    /// All its layers, lowest first.
    pub(super) layers: Vec<BuiltLayer>,
    pub(super) config: Config,
}

impl Tree {
    /// The layers as they can be mounted: where one comes twice, the lower one is hidden by the upper one.
    pub(super) fn mounted(&self) -> Vec<LayerId> {
        let is_last = |at: usize| !self.layers[at + 1..].iter().any(|layer| layer.layer == self.layers[at].layer);
        (0..self.layers.len()).filter(|&at| is_last(at)).map(|at| self.layers[at].layer.clone()).collect()
    }
}

impl Site {
    /// Does the stage at this place of the plan, when what it needs is done.
    pub(super) async fn stage(&self, at: usize) -> Result<(), BuildError> {
        let stage = &self.build.plan.stages[at];
        let placed = |problem| BuildError { step: None, position: Some(stage.position), problem };
        let mut tree = self.base(stage).await.map_err(placed)?;
        let first = self.first_steps.get(&stage.index).copied().unwrap_or_default();
        let keys = self.keys.get(&stage.index).map(Vec::as_slice).unwrap_or_default();
        for (number, (step, key)) in stage.steps.iter().zip(keys).enumerate() {
            let number = first + number;
            if let Err(problem) = self.step(number, step, key, &mut tree).await {
                return Err(BuildError { step: Some(number), position: Some(step.position), problem });
            }
        }
        if let Some(finished) = self.finished.get(&stage.index) {
            finished.send_replace(Some(Arc::new(tree)));
        }
        Ok(())
    }

    async fn base(&self, stage: &Stage) -> Result<Tree, Problem> {
        match &stage.base {
            Base::Scratch => Ok(Tree { config: Config::of_scratch(), ..Tree::default() }),
            Base::Stage(index) => {
                Ok((*self.wait_for(*index).await?).clone()).map(|tree| Tree { config: tree.config.as_base(), ..tree })
            }
            Base::Image(image) => {
                let foundation = self.workshop.foundation(self.build.image(image)?)?;
                let config = Config::read(&foundation.config)
                    .map_err(|error| Problem::Workshop(WorkshopError::Base(format!("config: {error}"))))?;
                Ok(Tree { layers: foundation.layers, config: config.as_base() })
            }
            Base::Context(name) => {
                let mut tree = Tree::default();
                let made = self.copy_context(name).await?;
                tree.layers.push(made);
                Ok(tree)
            }
        }
    }

    /// What another stage comes to.
    pub(super) async fn wait_for(&self, stage: usize) -> Result<Arc<Tree>, Problem> {
        let lost = || Problem::Missing(format!("the stage {stage} was not built"));
        let mut finished = self.finished.get(&stage).ok_or_else(lost)?.subscribe();
        let tree = finished.wait_for(Option::is_some).await.map_err(|_| lost())?;
        tree.clone().ok_or_else(lost)
    }

    async fn step(&self, number: usize, step: &Step, key: &Digest, tree: &mut Tree) -> Result<(), Problem> {
        let makes_files = matches!(step.action, Action::Run(_) | Action::Copy(_) | Action::Workdir(_));
        let result = if makes_files {
            Some(self.files_of(number, step, key, tree).await?)
        } else {
            self.tell(Event::Started { step: number }).await;
            self.tell(Event::Done { step: number, wall_ms: 0 }).await;
            None
        };
        let created = self.build.date().or(result.as_ref().map(|result| result.created));
        let layer = result.and_then(|result| result.layer);
        tree.config.apply(step, layer.is_some(), created);
        if tree.layers.len() + usize::from(layer.is_some()) > LAYERS_MAX {
            return Err(Problem::Unsupported(format!(
                "the image has more than {LAYERS_MAX} layers\nhint: join several RUN into one, or copy with one COPY"
            )));
        }
        tree.layers.extend(layer);
        Ok(())
    }

    /// What a step makes: known from before, made by another build at this moment, or made now.
    async fn files_of(&self, number: usize, step: &Step, key: &Digest, tree: &Tree) -> Result<StepResult, Problem> {
        let key = &super::with_epoch(key, self.build.epoch);
        let store = Arc::clone(self.workshop.store());
        let uses_known = self.build.uses_known_steps && super::is_repeatable(step);
        let known = || if uses_known { store.known_step(key) } else { None };
        if let Some(result) = known() {
            return self.take_known(number, result).await;
        }
        let _turn = store.take_step(key).await;
        if let Some(result) = known() {
            return self.take_known(number, result).await;
        }
        // What a stage waits for is waited for before a slot is taken: it may need one itself.
        for origin in origins(step) {
            if let Origin::Stage(other) = origin {
                self.wait_for(*other).await?;
            }
        }
        let slot = self.steps.acquire().await;
        self.tell(Event::Started { step: number }).await;
        let began = Instant::now();
        let layer = self.make(number, step, tree).await?;
        drop(slot);
        let result = StepResult { layer, created: Timestamp::now() };
        let (at, remembered) = (key.clone(), result.clone());
        let remembering = tokio::task::spawn_blocking(move || store.remember_step(&at, &remembered));
        // A step that cannot be remembered is run again the next time.
        if let Ok(Err(error)) = remembering.await {
            tracing::warn!(error = %error, "a step of a build was not remembered");
        }
        let wall_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.tell(Event::Done { step: number, wall_ms }).await;
        Ok(result)
    }

    async fn take_known(&self, number: usize, result: StepResult) -> Result<StepResult, Problem> {
        if let Some(layer) = &result.layer {
            self.workshop.hold(&layer.content.digest, &layer.layer).await?;
        }
        self.tell(Event::Cached { step: number }).await;
        Ok(result)
    }

    async fn make(&self, number: usize, step: &Step, tree: &Tree) -> Result<Option<BuiltLayer>, Problem> {
        match &step.action {
            Action::Run(run) => self.run(number, step, run, tree).await.map(Some),
            Action::Copy(copy) => self.copy(copy, tree).await.map(Some),
            Action::Workdir(path) => self.make_folder(path, tree.config.user(), tree).await,
            _ => Ok(None),
        }
    }
}

/// Where a step takes files from.
pub(super) fn origins(step: &Step) -> Vec<&Origin> {
    match &step.action {
        Action::Copy(copy) => vec![&copy.from],
        Action::Run(run) => run.mounts.iter().filter_map(|mount| mount.from.as_ref()).collect(),
        _ => Vec::new(),
    }
}
