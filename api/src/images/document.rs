//! Images as the API shows them, made of what the store says.

use std::collections::BTreeMap;

use ampoule_client::types;
use ampoule_engine::image::config::ImageConfig;
use ampoule_engine::image::store::{
    Account, Detail, DiskUsage, ImageSummary, LayerDetail, Listed, Loaded, PrunePlan, Reclaimable, Share, StepDetail,
};
use jiff::Timestamp;

/// An image in a list.
pub(super) fn document(summary: ImageSummary) -> types::Image {
    types::Image {
        imported: summary.imported_unix.and_then(|unix| Timestamp::from_second(i64::try_from(unix).ok()?).ok()),
        reference: summary.reference,
        digest: summary.digest,
        size_bytes: summary.size_bytes,
        layers: count(summary.layers),
        created: summary.created.and_then(|time| time.parse().ok()),
        damage: summary.damage,
        skipped: summary
            .skipped
            .map(|skipped| types::ImageSkipped { devices: skipped.devices, xattrs: skipped.xattrs }),
        shared_bytes: None,
        unique_bytes: None,
        config: None,
        details: None,
    }
}

/// An image in a list of all.
pub(super) fn listed(listed: Listed) -> types::Image {
    shared(document(listed.summary), listed.stored)
}

fn shared(image: types::Image, stored: Share) -> types::Image {
    types::Image { shared_bytes: Some(stored.shared_bytes), unique_bytes: Some(stored.unique_bytes), ..image }
}

/// An image that was asked for by its name.
pub(super) fn detailed(detail: Detail) -> types::Image {
    let history = detail.history.iter().rev().map(step).collect();
    let details = types::ImageDetails {
        names: detail.names,
        config_digest: detail.config_digest,
        media_type: detail.media_type,
        platform: detail.platform,
        author: detail.author,
        in_use: detail.is_held,
        layers: detail.layers.iter().map(layer).collect(),
        history,
    };
    let image = shared(document(detail.summary), detail.stored);
    types::Image { config: Some(config(&detail.config)), details: Some(details), ..image }
}

fn config(config: &ImageConfig) -> types::ImageConfig {
    types::ImageConfig {
        env: config.env.iter().cloned().collect::<BTreeMap<_, _>>(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        working_dir: config.working_dir.clone(),
        user: config.user.clone(),
        labels: config.labels.clone(),
        exposed_ports: config.exposed_ports.clone(),
        volumes: config.volumes.clone(),
        stop_signal: config.stop_signal.clone(),
        healthcheck: config.healthcheck.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok()),
        shell: config.shell.clone(),
        on_build: config.on_build.clone(),
    }
}

fn layer(layer: &LayerDetail) -> types::ImageLayer {
    types::ImageLayer {
        digest: layer.digest.clone(),
        diff_id: layer.diff_id.clone(),
        media_type: layer.media_type.clone(),
        size_bytes: layer.size_bytes,
        unpacked_bytes: layer.unpacked_bytes,
        entries: layer.entries,
    }
}

/// A step of an image's history.
pub(super) fn step(detail: &StepDetail) -> types::ImageStep {
    let StepDetail { step, layer } = detail;
    types::ImageStep {
        created: step.created.as_ref().and_then(|time| time.parse().ok()),
        created_by: step.created_by.clone(),
        comment: step.comment.clone(),
        empty_layer: step.is_empty,
        layer: layer.as_ref().map(|layer| layer.digest.clone()),
        size_bytes: layer.as_ref().map_or(0, |layer| layer.size_bytes),
        unpacked_bytes: layer.as_ref().map_or(Some(0), |layer| layer.unpacked_bytes),
    }
}

/// What an archive brought.
pub(super) fn loaded(loaded: Loaded) -> types::ImagesLoaded {
    let left_out = |left_out: ampoule_engine::image::store::LeftOut| types::ImageLeftOut {
        reference: left_out.reference,
        digest: left_out.digest,
        platform: left_out.platform,
    };
    types::ImagesLoaded {
        images: loaded.images.into_iter().map(document).collect(),
        left_out: loaded.left_out.into_iter().map(left_out).collect(),
    }
}

/// What pruning let go, or would.
pub(super) fn pruned(plan: PrunePlan, dry_run: bool) -> types::ImagesPruned {
    let going = plan.images.into_iter().map(|image| types::ImagePruned {
        digest: image.digest,
        names: image.names,
        size_bytes: image.size_bytes,
    });
    let kept =
        plan.kept.into_iter().map(|image| types::ImageKept { digest: image.digest, names: image.names, by: image.by });
    types::ImagesPruned {
        dry_run,
        plan: plan.id,
        images: going.collect(),
        kept: kept.collect(),
        removed: plan.removed,
        freed_bytes: plan.freed_bytes,
        freed_unpacked_bytes: plan.freed_unpacked_bytes,
    }
}

/// What images take on disk.
pub(super) fn usage(usage: DiskUsage) -> types::ImagesUsage {
    let share = |share: Share| types::UsageShare {
        total_bytes: share.total_bytes,
        shared_bytes: share.shared_bytes,
        unique_bytes: share.unique_bytes,
    };
    let total = |account: &Account| types::UsageTotal {
        count: count(account.count),
        total_bytes: account.total_bytes,
        shared_bytes: account.shared_bytes,
    };
    let reclaimable = |reclaimable: Reclaimable| types::UsageReclaimable {
        images: count(reclaimable.images),
        stored_bytes: reclaimable.stored_bytes,
        unpacked_bytes: reclaimable.unpacked_bytes,
    };
    types::ImagesUsage {
        stored: total(&usage.blobs),
        unpacked: total(&usage.layers),
        unknown_layers: count(usage.layers_unknown),
        dangling: reclaimable(usage.dangling),
        unused: reclaimable(usage.unused),
        images: usage
            .images
            .into_iter()
            .map(|image| types::ImageUsage {
                digest: image.digest,
                names: image.names,
                stored: share(image.stored),
                unpacked: share(image.unpacked),
            })
            .collect(),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
