//! The whole conversation between service, launcher, zygote and pid 1, as data, and how it travels.
//!
//! ```text
//! service ──Request──▶ launcher ──ZygoteRequest──▶ zygote ──clone3──▶ pid 1
//! service ◀──Reply──── launcher ◀──ZygoteReply──── zygote
//!                      launcher ──InitRequest────▶ pid 1
//!                      launcher ◀──InitReply────── pid 1
//! service ──InitRequest::Start──▶ pid 1 of a sandbox that was lent
//! service ◀──InitReply─────────── pid 1 of a sandbox that was lent
//! ```
//!
//! **A sandbox that was made ahead is lent to the service**, with the launcher's end of the conversation with its pid 1
//! and the counters of its control group. From then on only the service hears pid 1, until it gives the sandbox back.
//! What the launcher keeps is the process: it ends it, sees it end, and takes down what is left.
//!
//! Every arrow is a `SOCK_SEQPACKET` socket: a message is one packet of bounded size with its descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::image::tree::{PlaceOrder, StepTerms, Wanted};
use crate::isolation::cgroup::MeterTerms;
use crate::isolation::network::Uplink;
use crate::spec::{
    Artifacts, CacheFolder, Command, Exit, Frame, LayerId, LeftOut, Limits, Phases, SandboxSpec, Skipped, StepMount,
    StopReason,
};

/// Largest message: a command of the largest size, its frame, and room for framing.
pub(crate) const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Most descriptors in one message.
pub(crate) const DESCRIPTORS_MAX: usize = 16;

/// What the service asks of the launcher. `token` pairs the answer with the request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Descriptors: stdin, stdout, stderr, then the archive of files and the pipe for artifacts where announced.
    /// `lent` is a lent sandbox of the same frame that is given back with this, to be used.
    Launch { token: u64, spec: Box<SandboxSpec>, has_files: bool, has_artifacts: bool, lent: Option<u64> },
    /// A lent sandbox runs a command: the launcher holds its processor time, and tells its death as its exit.
    Follow { number: u64, token: u64, cpu_time_ms: u64, cpu_milli: u32 },
    /// A lent sandbox is of no more use, because its command ended or because it is not wanted.
    Done { number: u64, was_used: bool },
    /// A lent sandbox whose command goes on is looked at no more.
    Forget { number: u64 },
    /// Ends the sandbox of an earlier `Launch` or `Follow`.
    Stop { token: u64, reason: StopReason },
    /// Unpacks the layer whose archive is the one descriptor.
    Unpack { token: u64 },
    /// Removes an unpacked layer.
    Remove { token: u64, layer: LayerId },
    /// Reads unpacked layers; the one descriptor is what `Look` says.
    Look { token: u64, look: Look },
    /// Runs a command of a build on a root that it may change; what it changed becomes a layer when it ends with 0.
    /// `token` is answered with its exit, `layer` with the layer. Descriptors: stdin, stdout, stderr, the archive of
    /// files where announced, all secrets in one file where announced, then where the tar of the layer is to be written
    /// to.
    Step {
        token: u64,
        layer: u64,
        spec: Box<SandboxSpec>,
        has_files: bool,
        terms: StepTerms,
        mounts: Vec<StepMount>,
        has_secrets: bool,
    },
    /// Puts files on top of layers; what changes becomes a layer. Descriptors: a tar of the files, where the tar of the
    /// layer is to be written to.
    Place { token: u64, base: Vec<LayerId>, order: Box<PlaceOrder> },
    /// Says how much a cache of builds takes on disk, as what was `Written`.
    MeasureCache { token: u64, folder: CacheFolder },
    /// Removes a cache of builds.
    RemoveCache { token: u64, folder: CacheFolder },
}

/// What is read of unpacked layers, and for what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Look {
    /// Writes what these layers come to, lowest first, to the descriptor as a tar.
    Export { layers: Vec<LayerId> },
    /// Writes to the descriptor how what the second layers come to differs from what the first do.
    Compare { before: Vec<LayerId>, after: Vec<LayerId> },
    /// Compares a layer with its archive, the descriptor, and has it take the layer's place where they differ.
    Check { layer: LayerId, mends: bool },
    /// Writes a part of what these layers come to to the descriptor, in the form that `Request::Place` takes.
    Select { layers: Vec<LayerId>, wanted: Wanted },
}

/// What a look came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Looked {
    /// All of it was written.
    Written { entries: u64, bytes: u64 },
    /// A layer was compared with its archive, whose own digest is `archive`.
    Checked { archive: LayerId, differences: u64, samples: Vec<String>, is_mended: bool },
}

/// What the launcher answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The first word: it works, or why it cannot.
    Started(Result<(), String>),
    /// A sandbox ended, or never came to be.
    Exit { token: u64, exit: Exit },
    /// A layer is there, or is not.
    Unpacked { token: u64, result: Result<UnpackedLayer, String> },
    /// A layer is gone, or is not.
    Removed { token: u64, result: Result<(), String> },
    /// Layers were read, or could not be.
    Looked { token: u64, result: Result<Looked, String> },
    /// A sandbox is lent. Descriptors: the launcher's end of the conversation with its pid 1, then those of the meter.
    Lent(Box<Lent>),
    /// A lent sandbox is wanted back, if it has no command yet.
    Recall { number: u64 },
    /// What the launcher holds, without what is lent, sent when it changed.
    Census { live: u64, warm: u64, warm_hits: u64, cold_starts: u64 },
}

/// A sandbox that is lent: prepared, with its limits in force, waiting for a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Lent {
    pub(crate) number: u64,
    pub(crate) frame: Frame,
    pub(crate) limits: Limits,
    pub(crate) meter: MeterTerms,
}

/// What a worker found while it unpacked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UnpackedLayer {
    pub(crate) layer: LayerId,
    pub(crate) tar_bytes: u64,
    pub(crate) entries: u64,
    pub(crate) skipped: Skipped,
}

/// What the launcher asks of a zygote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ZygoteRequest {
    /// Make a sandbox. Descriptors: its end of the control socket, its user namespace, the id map for its mounts,
    /// then those of the control group: on version 1 the `tasks` files, on version 2 the folder.
    Prepare { number: u64, frame: Frame, first_id: u32, version_2: bool, in_background: bool, uplink: Option<Uplink> },
}

/// What a zygote answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ZygoteReply {
    /// Its tree stands.
    Ready,
    /// Its tree could not be made; the process ends.
    NotReady { reason: String },
    /// The process was made; its descriptor is with the message.
    Cloned { number: u64, pid: i32, clone_us: u64 },
    /// It could not be made.
    Failed { number: u64, reason: String },
}

/// What the launcher asks of pid 1.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum InitRequest {
    /// Comes first. The descriptor is pid 1's own `oom_score_adj`, by which it says whom the kernel shall kill first
    /// when memory ends.
    Badness,
    /// Run this. Descriptors: those of `Request::Launch`.
    Start(Box<Start>),
    /// End the command: it is killed, what it left is collected.
    Stop,
}

/// A command with all that pid 1 must know to run it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) artifacts: Artifacts,
    pub(crate) wall_time_ms: u64,
    pub(crate) open_files: u64,
    pub(crate) file_bytes: u64,
    pub(crate) has_files: bool,
    pub(crate) has_artifacts: bool,
}

impl Start {
    /// The command of a spec, as pid 1 needs it.
    pub(crate) fn new(command: Command, limits: &Limits, has_files: bool, has_artifacts: bool) -> Start {
        Start {
            argv: command.argv,
            env: command.env,
            cwd: command.cwd,
            artifacts: command.artifacts,
            wall_time_ms: limits.wall_time_ms,
            open_files: limits.open_files,
            file_bytes: limits.file_bytes,
            has_files,
            has_artifacts,
        }
    }
}

/// What pid 1 answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum InitReply {
    /// Prepared and waiting.
    Ready { phases: Phases },
    /// The sandbox could not be prepared, or the command not be started; the process ends.
    Failed { reason: String, retryable: bool },
    /// The command ended; pid 1 ends too.
    Finished(Finished),
}

/// How a command ended, as pid 1 saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub(crate) status: CommandStatus,
    /// Whether pid 1's clock ended it.
    pub(crate) wall_limit: bool,
    /// Whether a writable path had no room left.
    pub(crate) disk_full: bool,
    pub(crate) detail: String,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) wall_us: u64,
    pub(crate) exec_us: u64,
}

/// What wait(2) said of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CommandStatus {
    Exited(i32),
    Signaled(i32),
}

/// Two ends of a conversation, both close-on-exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let ends = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for end in [&ends.0, &ends.1] {
        // A packet must fit whole; the kernel doubles the value and caps it at wmem_max, so a privileged
        // process asks past the cap.
        if sockopt::set_socket_send_buffer_size_force(end, 2 * MESSAGE_BYTES_MAX).is_err() {
            sockopt::set_socket_send_buffer_size(end, 2 * MESSAGE_BYTES_MAX)?;
        }
    }
    Ok(ends)
}

/// Sends one message with descriptors; waits for room unless the socket does not block.
///
/// # Errors
/// `InvalidInput` when the message is too large, else what sendmsg(2) says.
pub(crate) fn send<M: Serialize>(socket: impl AsFd, message: &M, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    if bytes.len() > MESSAGE_BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {} bytes", bytes.len())));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message and its descriptors. `None` is the end of the conversation.
///
/// # Errors
/// `WouldBlock` on an empty socket that does not block; `InvalidData` for a message that is not one.
pub(crate) fn receive<M: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    receive_with(socket, buffer, RecvFlags::empty())
}

/// The same without waiting, whatever the socket does otherwise: for one that is shared with another process.
///
/// # Errors
/// `WouldBlock` when nothing is there; `InvalidData` for a message that is not one.
pub(crate) fn receive_now<M: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    receive_with(socket, buffer, RecvFlags::DONTWAIT)
}

fn receive_with<M: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            // The other end died with unread messages: the conversation is over all the same.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    let descriptors = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Ok(None);
    }
    let message = postcard::from_bytes(&buffer[..received.bytes])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, descriptors)))
}

/// A buffer that every message fits into.
pub(crate) fn message_buffer() -> Vec<u8> {
    vec![0; MESSAGE_BYTES_MAX]
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (ours, theirs) = pair().expect("sockets can be made");
        let (mut reader, writer) = std::io::pipe().expect("pipes can be made");
        let layer = LayerId::parse(&"a".repeat(64)).expect("this is a digest");
        send(&ours, &Request::Remove { token: 7, layer: layer.clone() }, &[writer.as_fd()]).expect("there is room");
        drop(writer);
        let received = receive::<Request>(&theirs, &mut message_buffer()).expect("a message is there");
        let (request, mut descriptors) = received.expect("the conversation goes on");
        assert!(matches!(request, Request::Remove { token: 7, layer: it } if it == layer));
        let descriptor = descriptors.pop().expect("a descriptor came along");
        File::from(descriptor).write_all(b"through").expect("the pipe is open");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("the pipe is open");
        assert_eq!(text, "through");
    }

    #[test]
    fn the_largest_command_fits_into_a_message_and_a_larger_one_is_refused() {
        let (ours, theirs) = pair().expect("sockets can be made");
        let longest = "x".repeat(crate::spec::COMMAND_BYTES_MAX);
        send(&ours, &InitReply::Failed { reason: longest.clone(), retryable: true }, &[]).expect("there is room");
        let received = receive::<InitReply>(&theirs, &mut message_buffer()).expect("a message is there");
        assert!(matches!(received, Some((InitReply::Failed { reason, .. }, _)) if reason == longest));
        let endless = "x".repeat(MESSAGE_BYTES_MAX);
        let refused = send(&ours, &InitReply::Failed { reason: endless, retryable: true }, &[]);
        assert_eq!(refused.expect_err("it is too long").kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_conversation_ends_when_the_other_end_is_closed() {
        let (ours, theirs) = pair().expect("sockets can be made");
        drop(ours);
        assert!(receive::<InitReply>(&theirs, &mut message_buffer()).expect("the end is no error").is_none());
    }
}
