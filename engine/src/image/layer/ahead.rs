//! Two threads that work ahead of who unpacks a layer: one decompresses, one hashes. They are started before the
//! process is confined and wait; afterwards it can start none.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread;

use crate::image::compression::{Bounds, Decompressed};
use crate::image::digest::Hasher;

/// Bytes of one piece.
const PIECE_BYTES: usize = 512 * 1024;
/// Pieces on their way between two threads; there are no more than twice as many in all, and one at each thread.
const PIECES_MAX: usize = 4;

/// What is to be read.
struct Order {
    archive: Box<dyn Read + Send>,
    bounds: Bounds,
}

/// What goes from thread to thread.
enum Piece {
    /// The next bytes.
    Bytes(Vec<u8>),
    /// Reading failed; nothing follows.
    Failed(io::Error),
    /// The end, with the digest of everything.
    End(Hasher),
}

/// Threads that wait for an archive.
pub(crate) struct Ahead {
    orders: SyncSender<Order>,
    pieces: Receiver<Piece>,
    empties: Sender<Vec<u8>>,
}

/// The uncompressed bytes of an archive, read by other threads.
pub(super) struct ReadAhead {
    pieces: Receiver<Piece>,
    empties: Sender<Vec<u8>>,
    current: Vec<u8>,
    taken: usize,
    hasher: Option<Hasher>,
}

impl Ahead {
    /// Starts the threads.
    ///
    /// # Errors
    /// The machine gives no more threads.
    pub(crate) fn start() -> io::Result<Ahead> {
        let (orders, ordered) = sync_channel::<Order>(1);
        let (empties, emptied) = channel();
        let (raw_sender, raw) = sync_channel(PIECES_MAX);
        let (hashed, pieces) = sync_channel(PIECES_MAX);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| thread::Builder::new().name(name.into()).spawn(work);
        spawn(
            "ampoule-inflate",
            Box::new(move || {
                if let Ok(Order { archive, bounds }) = ordered.recv() {
                    inflate(archive, bounds, &emptied, &raw_sender);
                }
            }),
        )?;
        spawn("ampoule-hash", Box::new(move || hash(&raw, &hashed)))?;
        Ok(Ahead { orders, pieces, empties })
    }

    /// Has the threads read an archive.
    pub(super) fn read(self, archive: impl Read + Send + 'static, bounds: Bounds) -> ReadAhead {
        // Were the thread gone, the end of its pieces would say so.
        let _ = self.orders.send(Order { archive: Box::new(archive), bounds });
        ReadAhead { pieces: self.pieces, empties: self.empties, current: Vec::new(), taken: 0, hasher: None }
    }
}

/// Decompresses until the end, or until nobody wants more.
fn inflate(archive: Box<dyn Read + Send>, bounds: Bounds, empties: &Receiver<Vec<u8>>, pieces: &SyncSender<Piece>) {
    let mut plain = match Decompressed::new(archive, bounds) {
        Ok(plain) => plain,
        Err(error) => return drop(pieces.send(Piece::Failed(error))),
    };
    loop {
        let mut piece = match empties.try_recv() {
            Ok(piece) => piece,
            Err(TryRecvError::Empty) => Vec::new(),
            Err(TryRecvError::Disconnected) => return,
        };
        piece.resize(PIECE_BYTES, 0);
        let (filled, failure) = fill(&mut plain, &mut piece);
        piece.truncate(filled);
        if filled > 0 && pieces.send(Piece::Bytes(piece)).is_err() {
            return;
        }
        match failure {
            Some(error) => return drop(pieces.send(Piece::Failed(error))),
            None if filled < PIECE_BYTES => return drop(pieces.send(Piece::End(Hasher::default()))),
            None => {}
        }
    }
}

/// Reads until the buffer is full, the end or a failure; says how much it read.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Some(error)),
        }
    }
    (filled, None)
}

/// Hashes what passes, and ends it with the digest. A thread before this one that vanishes is no end.
fn hash(raw: &Receiver<Piece>, hashed: &SyncSender<Piece>) {
    let mut hasher = Hasher::default();
    while let Ok(piece) = raw.recv() {
        let piece = match piece {
            Piece::Bytes(bytes) => {
                hasher.update(&bytes);
                Piece::Bytes(bytes)
            }
            Piece::End(_) => Piece::End(std::mem::take(&mut hasher)),
            failed => failed,
        };
        if hashed.send(piece).is_err() {
            return;
        }
    }
}

impl ReadAhead {
    /// The digest of everything; to be asked for at the end.
    pub(super) fn into_hasher(self) -> io::Result<Hasher> {
        self.hasher.ok_or_else(|| io::Error::other("the archive was not read to its end"))
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.current.len() {
            if self.hasher.is_some() {
                return Ok(0);
            }
            // Whoever fills pieces may be gone already, at the end.
            let _ = self.empties.send(std::mem::take(&mut self.current));
            self.taken = 0;
            match self.pieces.recv() {
                Ok(Piece::Bytes(bytes)) => self.current = bytes,
                Ok(Piece::Failed(error)) => return Err(error),
                Ok(Piece::End(hasher)) => self.hasher = Some(hasher),
                Err(_) => return Err(io::Error::other("a thread that reads ahead ended early")),
            }
        }
        let count = buffer.len().min(self.current.len() - self.taken);
        buffer[..count].copy_from_slice(&self.current[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Digest;

    fn read(archive: Vec<u8>, bounds: Bounds) -> io::Result<(Vec<u8>, Hasher)> {
        let mut plain = Ahead::start()?.read(io::Cursor::new(archive), bounds);
        let mut bytes = Vec::new();
        plain.read_to_end(&mut bytes)?;
        Ok((bytes, plain.into_hasher()?))
    }

    #[test]
    fn what_is_read_ahead_is_what_was_written() {
        for length in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 20 * PIECE_BYTES + 7] {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 31 % 251) as u8).collect();
            for archive in [bytes.clone(), zstd::encode_all(&bytes[..], 1).unwrap()] {
                let (plain, hasher) = read(archive, Bounds::default()).unwrap();
                assert!(plain == bytes, "{length}");
                assert_eq!(hasher.finish(), Digest::of(&bytes), "{length}");
            }
        }
    }

    #[test]
    fn a_failure_arrives_in_its_place() {
        let packed = zstd::encode_all(&vec![7; 9 * PIECE_BYTES][..], 1).unwrap();
        let cut = packed[..packed.len() - 3].to_vec();
        assert_eq!(read(cut, Bounds::default()).err().unwrap().kind(), io::ErrorKind::UnexpectedEof);
        let bounds = Bounds { bytes_max: 3 * PIECE_BYTES as u64, ..Bounds::default() };
        assert!(read(packed, bounds).err().unwrap().to_string().contains("larger than"));
        assert!(read(b"\xfd7zXZ\0rest".to_vec(), Bounds::default()).is_err());
    }
}
