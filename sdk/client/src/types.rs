//! The types that travel: what a client sends to the service and what it gets back, as JSON.
//! They are only data. What the service makes of them is its own affair.

pub mod build;
pub mod image;
pub mod job;
pub mod policy;
pub mod problem;
pub mod system;
pub mod transfer;
pub mod tree;

pub use build::{
    Build, BuildCache, BuildCacheList, BuildCachesRemoved, BuildEvent, BuildList, BuildPlace, BuildRequest,
    BuildResult, BuildSecret, BuildState, BuildStep, BuildStepState, BuildStepStatus,
};
pub use image::{
    Image, ImageConfig, ImageDetails, ImageHistory, ImageKept, ImageLayer, ImageLeftOut, ImageList, ImagePruned,
    ImageRemoved, ImageSkipped, ImageStep, ImageTag, ImageTagged, ImageUsage, ImagesLoaded, ImagesPruned, ImagesUsage,
    UsageReclaimable, UsageShare, UsageTotal,
};
pub use job::{
    Artifact, ArtifactList, ArtifactsRequest, Batch, BatchItem, BatchResult, Ending, EndingKind, Event, Figures, Gap,
    Job, JobFile, JobList, JobRequest, JobSpec, JobState, JobSummary, Limits, LimitsRequest, LogChunk, Output, Phases,
    SpecFile, Stream, Times, Upload, Writable,
};
pub use policy::{Decision, Denial, Outcome, Policy, PolicyList, PolicyWarning, Verdict};
pub use problem::Problem;
pub use system::{Health, Token, TokenCreated, TokenList, TokenRequest, Version};
pub use transfer::{
    LayerState, PullRequest, PullResult, PushRequest, PushResult, RegistryLogin, TransferEvent, TransferLayer,
};
pub use tree::{ChangeKind, FileFacts, FileKind, ImageChange, ImageDiff, Verification, VerifiedImage, VerifyRequest};
