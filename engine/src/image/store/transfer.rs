//! What pulls and pushes have in common: how they tell how far they are, and how they are stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::image::digest::Digest;

/// Layers that all pulls together unpack at once; each takes one of the launcher's places.
pub const UNPACKS_AT_ONCE: u32 = 4;
/// Blobs of one image under way at once.
pub(super) const BLOBS_AT_ONCE: usize = 3;
/// How many more bytes have to have come before it is told again.
const TOLD_EVERY_BYTES: u64 = 256 * 1024;

/// How far a pull or a push is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is known: what the image consists of.
    Resolved {
        /// The digest of the manifest.
        digest: Digest,
        /// Its layers with their sizes in bytes, lowest first.
        layers: Vec<(Digest, u64)>,
    },
    /// Something happened to a layer.
    Layer {
        /// Which, as stored.
        digest: Digest,
        /// What.
        state: LayerState,
        /// Bytes that have come or gone.
        bytes: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// What becomes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// It is where it was to go already.
    Present,
    /// It is on its way.
    Moving,
    /// It came, and is unpacked.
    Unpacked,
    /// The registry took it over from another repository.
    Mounted,
    /// It is sent.
    Sent,
}

/// Ends a pull or a push early, from any thread. Cloning shares it.
#[derive(Clone, Default)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    is_stopped: AtomicBool,
    changed: Notify,
}

impl Stop {
    /// Asks for the end. What was begun is undone by whoever works.
    pub fn stop(&self) {
        self.shared.is_stopped.store(true, Ordering::Release);
        self.shared.changed.notify_waiters();
    }

    /// Whether the end was asked for.
    pub fn is_stopped(&self) -> bool {
        self.shared.is_stopped.load(Ordering::Acquire)
    }

    /// Waits until the end is asked for.
    pub(super) async fn stopped(&self) {
        loop {
            // Interest is registered before the look, so that no wish slips between.
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_stopped() {
                return;
            }
            changed.await;
        }
    }
}

/// Tells of the bytes of one blob, but not of each.
pub(super) struct Meter<'told> {
    told: &'told (dyn Fn(Progress) + Sync),
    digest: Digest,
    total: u64,
    last: std::sync::atomic::AtomicU64,
}

impl<'told> Meter<'told> {
    pub(super) fn new(told: &'told (dyn Fn(Progress) + Sync), digest: &Digest, total: u64) -> Meter<'told> {
        let meter = Meter { told, digest: digest.clone(), total, last: std::sync::atomic::AtomicU64::new(0) };
        meter.tell(LayerState::Moving, 0);
        meter
    }

    /// So many bytes have come or gone.
    pub(super) fn at(&self, bytes: u64) {
        let last = self.last.load(Ordering::Relaxed);
        if bytes < last || bytes - last >= TOLD_EVERY_BYTES || bytes == self.total {
            self.last.store(bytes, Ordering::Relaxed);
            self.tell(LayerState::Moving, bytes);
        }
    }

    pub(super) fn tell(&self, state: LayerState, bytes: u64) {
        (self.told)(Progress::Layer { digest: self.digest.clone(), state, bytes, total: self.total });
    }
}
