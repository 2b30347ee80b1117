//! `RUN --mount`: what a command has besides the files of its stage. Parts of layers and of contexts are mounted as they
//! are, caches are taken for as long as the command runs, and secrets go to its sandbox and nowhere else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use tokio::sync::Mutex;

use super::stage::Tree;
use super::{Build, BuildError, Problem, Secret, Site};
use crate::builder::dockerfile::mount::{Mount, Sharing};
use crate::builder::glob;
use crate::builder::plan::{Action, MountAction, Origin, RunAction};
use crate::image::digest::Digest;
use crate::image::store::{BuiltLayer, CacheSharing, CacheUse, WantedCache};
use crate::runtime::Mounts;
use crate::spec::{FileOwner, LayersPart, MountContent, SECRET_BYTES_MAX, StepMount};

/// What a command is given besides its root and its own environment.
#[derive(Default)]
pub(super) struct Equipment {
    pub(super) mounts: Mounts,
    /// Secrets that are variables.
    pub(super) environment: Vec<(String, String)>,
    /// To be kept until the command is gone.
    pub(super) caches: Vec<CacheUse>,
}

/// Parts of contexts that are layers already, by context and path: the layer, and the path in it.
pub(super) type Parts = Mutex<BTreeMap<(Option<String>, String), (BuiltLayer, &'static str)>>;

/// Refuses what can be seen to be impossible before anything runs.
///
/// # Errors
/// A secret that is wanted and was not given, or cannot be given that way; an agent.
pub(super) fn check(build: &Build) -> Result<(), BuildError> {
    let steps = build.plan.stages.iter().flat_map(|stage| &stage.steps).enumerate();
    for (number, step) in steps {
        let Action::Run(run) = &step.action else { continue };
        for mount in &run.mounts {
            check_one(build, &mount.mount).map_err(|problem| BuildError {
                step: Some(number),
                position: Some(step.position),
                problem,
            })?;
        }
    }
    Ok(())
}

fn check_one(build: &Build, mount: &Mount) -> Result<(), Problem> {
    match mount {
        Mount::Ssh { .. } => Err(Problem::Unsupported(
            "`RUN --mount=type=ssh` cannot be done yet\nhint: give a key with --secret, and take it with --mount=type=secret"
                .to_owned(),
        )),
        Mount::Secret { id, required, env, .. } => match build.secrets.get(id) {
            None if *required => Err(Problem::Missing(format!(
                "the secret `{id}` was not given\nhint: give it with --secret id={id},src=FILE, or id={id},env=NAME"
            ))),
            None => Ok(()),
            Some(Secret(value)) if value.len() as u64 > SECRET_BYTES_MAX => Err(Problem::Unsupported(format!(
                "the secret `{id}` has {} bytes, at most {SECRET_BYTES_MAX}",
                value.len()
            ))),
            Some(Secret(value)) if env.is_some() && (value.contains(&0) || std::str::from_utf8(value).is_err()) => {
                Err(Problem::Unsupported(format!(
                    "the secret `{id}` cannot be a variable: it is no text\nhint: leave out env, and read its file"
                )))
            }
            Some(_) => Ok(()),
        },
        Mount::Cache { from: None, source, .. } if !source.trim_matches('/').is_empty() => {
            Err(Problem::Unsupported(format!(
                "the source `{source}` of a cache is in nothing\nhint: say from which stage, image or context it is, with from"
            )))
        }
        _ => Ok(()),
    }
}

/// A mount whose cache is still to be taken.
struct Draft {
    target: String,
    read_only: bool,
    content: Content,
}

enum Content {
    Ready(MountContent),
    Cache(WantedCache),
}

impl Site {
    /// What a command has, when all of it is there and can be used.
    pub(super) async fn equip(&self, run: &RunAction) -> Result<Equipment, Problem> {
        let mut equipment = Equipment::default();
        let (mut drafts, mut secrets) = (Vec::new(), Vec::new());
        for mount in &run.mounts {
            let (target, read_only, content) = match &mount.mount {
                Mount::Bind { source, target, read_only, .. } => {
                    let part = self.part(mount.from.as_ref().unwrap_or(&Origin::Context), source).await?;
                    (target, *read_only, Content::Ready(MountContent::Layers(part)))
                }
                Mount::Cache { target, read_only, .. } => {
                    (target, *read_only, Content::Cache(self.wanted_cache(mount).await?))
                }
                Mount::Secret { id, target, env, mode, uid, gid, .. } => {
                    let Some(Secret(value)) = self.build.secrets.get(id) else { continue };
                    if let Some(name) = env {
                        equipment.environment.push((name.clone(), String::from_utf8_lossy(value).into_owned()));
                    }
                    let Some(target) = target else { continue };
                    secrets.extend_from_slice(value);
                    let owner = FileOwner { mode: *mode, uid: *uid, gid: *gid };
                    (target, true, Content::Ready(MountContent::Secret { bytes: value.len() as u64, owner }))
                }
                // The first goes with the frame, the second was refused.
                Mount::Tmpfs { .. } | Mount::Ssh { .. } => continue,
            };
            let target = target.trim_end_matches('/').to_owned();
            drafts.push(Draft { target, read_only, content });
        }
        let folders = self.take_caches(&drafts).await?;
        equipment.mounts.mounts = drafts.into_iter().map(|draft| draft.finish(&folders)).collect::<Result<_, _>>()?;
        if !secrets.is_empty() || equipment.mounts.mounts.iter().any(StepMount::is_secret) {
            let kept = keep(&secrets);
            let kept = kept.map_err(|source| Problem::System { action: "pass the secrets on", source })?;
            equipment.mounts.secrets = Some(kept);
        }
        equipment.caches = folders.into_values().collect();
        Ok(equipment)
    }

    async fn wanted_cache(&self, mount: &MountAction) -> Result<WantedCache, Problem> {
        let Mount::Cache { id, sharing, source, mode, uid, gid, .. } = &mount.mount else {
            return Err(Problem::Missing("a cache".to_owned()));
        };
        let below = match &mount.from {
            Some(from) => Some(self.part(from, source).await?),
            None => None,
        };
        let sharing = match sharing {
            Sharing::Shared => CacheSharing::Shared,
            Sharing::Private => CacheSharing::Private,
            Sharing::Locked => CacheSharing::Locked,
        };
        let owner = FileOwner { mode: *mode, uid: *uid, gid: *gid };
        Ok(WantedCache { id: id.clone(), owner, below, sharing })
    }

    /// Where the files of a mount are.
    async fn part(&self, from: &Origin, source: &str) -> Result<LayersPart, Problem> {
        let source = glob::clean(&format!("/{source}"));
        let context = match from {
            Origin::Context => None,
            Origin::Named(name) => Some(name.clone()),
            Origin::Stage(stage) => {
                return Ok(LayersPart { layers: self.wait_for(*stage).await?.mounted(), source });
            }
            Origin::Image(image) => {
                let layers = self.workshop.foundation(self.build.image(image)?)?.layers;
                return Ok(LayersPart { layers: Tree { layers, ..Tree::default() }.mounted(), source });
            }
        };
        // Whoever wants the same waits here for whoever makes it.
        let mut parts = self.parts.lock().await;
        let at = (context, source);
        let (layer, path) = match parts.get(&at) {
            Some(there) => there.clone(),
            None => {
                let made = self.place_part(at.0.as_deref(), &at.1).await?;
                parts.insert(at, made.clone());
                made
            }
        };
        Ok(LayersPart { layers: vec![layer.layer], source: path.to_owned() })
    }

    /// Takes the caches of one command, always in the same order, so that no two commands wait for each other.
    async fn take_caches(&self, drafts: &[Draft]) -> Result<BTreeMap<Digest, CacheUse>, Problem> {
        let mut wanted: BTreeMap<Digest, WantedCache> = BTreeMap::new();
        for draft in drafts {
            let Content::Cache(cache) = &draft.content else { continue };
            match wanted.get_mut(&cache.key()) {
                Some(_) if cache.below.is_some() => {
                    let problem = format!("the cache `{}` has files to start with, and is mounted twice", cache.id);
                    return Err(Problem::Unsupported(problem));
                }
                Some(there) if there.sharing == CacheSharing::Shared => there.sharing = cache.sharing,
                Some(_) => {}
                None => drop(wanted.insert(cache.key(), cache.clone())),
            }
        }
        let mut taken = BTreeMap::new();
        for (key, cache) in wanted {
            taken.insert(key, self.build.caches.take(&cache).await?);
        }
        Ok(taken)
    }
}

impl Draft {
    fn finish(self, folders: &BTreeMap<Digest, CacheUse>) -> Result<StepMount, Problem> {
        let content = match self.content {
            Content::Ready(content) => content,
            Content::Cache(cache) => {
                let taken = folders.get(&cache.key());
                let taken = taken.ok_or_else(|| Problem::Missing(format!("the cache `{}`", cache.id)))?;
                MountContent::Cache { folder: taken.folder().clone(), below: cache.below, owner: cache.owner }
            }
        };
        Ok(StepMount { target: self.target, content, read_only: self.read_only })
    }
}

/// Bytes in a file of memory, which goes with its last descriptor.
fn keep(bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("secrets", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}
