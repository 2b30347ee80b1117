//! Archives of images as downloads: written while they are sent, so that none is ever whole in memory or on disk.

use std::io::{self, Write};
use std::time::Duration;

use ampoule_client::types::Problem;
use ampoule_engine::image::compression::{Compressed, Format};
use ampoule_engine::image::store::{ArchiveFormat, SaveError, Saving, Store};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::intake::unstored;
use super::{Images, SAVES_MAX, told, unresolved};
use crate::problem::{BUSY, IMAGE_DAMAGED, INVALID_QUERY, Refused, chain};
use crate::request::Fields;

/// Bytes of one piece of an archive.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait for the client.
const PIECES_MAX: usize = 4;
/// How long a client may take for one piece before it is given up.
const PIECE_TIME: Duration = Duration::from_secs(60);

/// What is saved, and how.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query; several fields may come several times")]
pub struct SaveQuery {
    /// A name, a digest, or the first 12 or more digits of one; several give one archive.
    reference: Vec<String>,
    /// `docker-archive` (unless said otherwise) or `oci-archive`.
    format: Option<String>,
    /// `gzip` or `zstd`; plain without it.
    compress: Option<String>,
}

/// Saves images as one archive: what `docker save` writes since version 25, or an OCI image layout. The same images give
/// the same bytes. An archive that breaks off is not whole: content that has decayed is noticed only as it is read.
#[utoipa::path(get, operation_id = "saveImages", path = "/v1/images:save", tag = "images", params(SaveQuery),
    responses((status = 200, description = "The archive", content_type = "application/x-tar", body = Vec<u8>),
        (status = 400, description = "The query cannot be used", body = Problem),
        (status = 404, description = "There is no such image", body = Problem),
        (status = 503, description = "Other archives are being sent", body = Problem)))]
pub async fn save(State(images): State<Images>, mut fields: Fields) -> Result<(HeaderMap, Body), Refused> {
    let references = fields.all("reference");
    let format = match fields.one::<String>("format")?.as_deref() {
        None | Some("docker-archive") => ArchiveFormat::Docker,
        Some("oci-archive") => ArchiveFormat::Oci,
        Some(other) => return Err(unknown("format", other, "`docker-archive` and `oci-archive`")),
    };
    let (compression, media_type) = match fields.one::<String>("compress")?.as_deref() {
        None => (Format::Plain, "application/x-tar"),
        Some("gzip") => (Format::Gzip, "application/gzip"),
        Some("zstd") => (Format::Zstd, "application/zstd"),
        Some(other) => return Err(unknown("compress", other, "`gzip` and `zstd`")),
    };
    fields.none_left()?;
    let busy = || Refused::new(BUSY, format!("{SAVES_MAX} archives are being sent")).retry_after(5);
    let permit = images.saves.clone().try_acquire_owned().map_err(|_| busy())?;
    let saving = images.blocking(move |images| images.store.prepare_save(&references, format)).await;
    let saving = saving.map_err(|error| Refused::internal(&error))?.map_err(|error| unsaved(&error))?;
    let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(media_type))]);
    if compression == Format::Plain {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(saving.archive_bytes()));
    }
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let store = images.store.clone();
    tokio::task::spawn_blocking(move || {
        write(&store, &saving, compression, sender);
        drop(permit);
    });
    Ok((headers, Body::from_stream(ReceiverStream::new(receiver))))
}

fn unknown(field: &str, found: &str, known: &str) -> Refused {
    Refused::new(INVALID_QUERY, format!("{field}: `{found}` is not known, only {known}"))
}

/// Writes an archive to a client. What goes wrong breaks it off, so that half of one is never taken for one.
fn write(store: &Store, saving: &Saving, compression: Format, sender: mpsc::Sender<io::Result<Bytes>>) {
    let pieces = Pieces { sender: sender.clone(), piece: Vec::with_capacity(PIECE_BYTES) };
    let written = Compressed::new(pieces, compression).map_err(SaveError::Write).and_then(|mut output| {
        store.write_archive(saving, &mut output)?;
        output.finish().map(drop).map_err(SaveError::Write)
    });
    let Err(error) = written else { return };
    if !sender.is_closed() {
        tracing::error!(cause = chain(&error), "an archive was broken off");
    }
    // One who does not listen any more has ended the connection himself.
    let _ = sender.try_send(Err(io::Error::other(chain(&error))));
}

fn unsaved(error: &SaveError) -> Refused {
    match error {
        SaveError::Resolve(error) => unresolved(error),
        SaveError::Count(_) | SaveError::Name(_) => told(INVALID_QUERY, error),
        SaveError::Damaged { .. } => told(IMAGE_DAMAGED, error),
        SaveError::Store(error) => unstored(error),
        SaveError::Write(_) => Refused::internal(error),
    }
}

/// The client, as something to write to from a thread that may block.
struct Pieces {
    sender: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let piece = Bytes::from(std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES)));
        let sent = Handle::current().block_on(tokio::time::timeout(PIECE_TIME, self.sender.send(Ok(piece))));
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE_BYTES - self.piece.len();
        let taken = bytes.len().min(room);
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() { Ok(()) } else { self.send() }
    }
}
