//! What is kept of an output stream: its start, its end, an exact word on what is missing between, and the SHA-256 of
//! all of it. Pure: bytes go in, whoever follows asks for what comes after an offset.

use ampoule_client::types::Gap;
use ampoule_engine::image::digest::Hasher;
use bytes::Bytes;

/// Longest piece that a follower gets at once, in bytes.
pub const PIECE_BYTES_MAX: usize = 64 * 1024;

/// A stream while it is written.
pub struct Log {
    head: Vec<u8>,
    head_bytes_max: usize,
    /// The last bytes after the head, as a ring once it is full; `tail_start` is where its oldest byte is.
    tail: Vec<u8>,
    tail_start: usize,
    tail_bytes_max: usize,
    total_bytes: u64,
    hash: Hasher,
}

/// What follows an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes that begin at the offset.
    Bytes(Vec<u8>),
    /// Nothing is kept from the offset on for so many bytes.
    Gap(Gap),
    /// Nothing has been written after the offset.
    Nothing,
}

/// A stream that is complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Start and end, one after the other.
    pub bytes: Bytes,
    /// What is missing between them.
    pub gap: Option<Gap>,
    /// Bytes that were written.
    pub total_bytes: u64,
    /// SHA-256 of all that was written, in hexadecimal.
    pub sha256: String,
}

impl Log {
    /// An empty stream of which at most so many bytes are kept: the first half of them from its start, the rest from
    /// its end.
    pub fn new(kept_bytes_max: u64) -> Log {
        let kept_bytes_max = usize::try_from(kept_bytes_max).unwrap_or(usize::MAX);
        let head_bytes_max = kept_bytes_max / 2;
        Log {
            head: Vec::new(),
            head_bytes_max,
            tail: Vec::new(),
            tail_start: 0,
            tail_bytes_max: kept_bytes_max - head_bytes_max,
            total_bytes: 0,
            hash: Hasher::default(),
        }
    }

    /// Takes what was written next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.total_bytes += bytes.len() as u64;
        let (to_head, rest) = bytes.split_at(bytes.len().min(self.head_bytes_max - self.head.len()));
        self.head.extend_from_slice(to_head);
        self.push_tail(rest);
    }

    fn push_tail(&mut self, bytes: &[u8]) {
        // Only the end of a long piece can stay.
        let bytes = &bytes[bytes.len().saturating_sub(self.tail_bytes_max)..];
        let room = self.tail_bytes_max - self.tail.len();
        let (to_grow, to_wrap) = bytes.split_at(bytes.len().min(room));
        self.tail.extend_from_slice(to_grow);
        let first = to_wrap.len().min(self.tail.len() - self.tail_start);
        let (to_end, to_start) = to_wrap.split_at(first);
        self.tail[self.tail_start..self.tail_start + first].copy_from_slice(to_end);
        self.tail[..to_start.len()].copy_from_slice(to_start);
        if !to_wrap.is_empty() {
            self.tail_start = (self.tail_start + to_wrap.len()) % self.tail.len();
        }
    }

    /// Bytes that were written so far.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// What follows `offset`, at most `PIECE_BYTES_MAX` of it.
    pub fn after(&self, offset: u64) -> Piece {
        let (older, newer) = (&self.tail[self.tail_start..], &self.tail[..self.tail_start]);
        piece_after(offset, self.total_bytes, &[&self.head, older, newer])
    }

    /// Ends the stream. The cut of a gap does not go through a character of UTF-8: up to three bytes on each side
    /// count as missing, so that text stays text.
    pub fn finish(self) -> Kept {
        let sha256 = self.hash.finish().hex().to_owned();
        let mut bytes = self.head;
        let head_bytes = bytes.len();
        bytes.extend_from_slice(&self.tail[self.tail_start..]);
        bytes.extend_from_slice(&self.tail[..self.tail_start]);
        let missing = self.total_bytes - bytes.len() as u64;
        let gap = (missing > 0).then(|| {
            let head_cut = incomplete_end(&bytes[..head_bytes]);
            let tail_cut = bytes[head_bytes..].iter().take(3).take_while(|byte| **byte & 0xC0 == 0x80).count();
            bytes.drain(head_bytes - head_cut..head_bytes + tail_cut);
            Gap { offset: (head_bytes - head_cut) as u64, bytes: missing + (head_cut + tail_cut) as u64 }
        });
        Kept { bytes: bytes.into(), gap, total_bytes: self.total_bytes, sha256 }
    }
}

impl Kept {
    /// What follows `offset`, at most `PIECE_BYTES_MAX` of it.
    pub fn after(&self, offset: u64) -> Piece {
        let cut = self.gap.map_or(self.bytes.len(), |gap| usize::try_from(gap.offset).unwrap_or(usize::MAX));
        let (head, tail) = self.bytes.split_at(cut.min(self.bytes.len()));
        piece_after(offset, self.total_bytes, &[head, tail, &[]])
    }
}

/// Finds what follows `offset` when the first of `parts` starts the stream and the others end it.
fn piece_after(offset: u64, total_bytes: u64, parts: &[&[u8]; 3]) -> Piece {
    let head_bytes = parts[0].len() as u64;
    let tail_offset = total_bytes - (parts[1].len() + parts[2].len()) as u64;
    if offset >= total_bytes {
        return Piece::Nothing;
    }
    if offset >= head_bytes && offset < tail_offset {
        return Piece::Gap(Gap { offset, bytes: tail_offset - offset });
    }
    let starts = [0, tail_offset, tail_offset + parts[1].len() as u64];
    let found = (0..3).rev().find(|part| starts[*part] <= offset && !parts[*part].is_empty());
    let Some(part) = found else { return Piece::Nothing };
    let rest = &parts[part][usize::try_from(offset - starts[part]).unwrap_or(usize::MAX)..];
    Piece::Bytes(rest[..rest.len().min(PIECE_BYTES_MAX)].to_vec())
}

/// How many bytes at the end are the start of a character of UTF-8 that is not complete.
fn incomplete_end(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let needed = match bytes[bytes.len() - back] {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            0x80..=0xBF => continue,
            _ => 0,
        };
        return if needed > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by keeping everything: which bytes are there (`None` is missing).
    fn naive(all: &[u8], kept_bytes_max: usize) -> Vec<Option<u8>> {
        let head = kept_bytes_max / 2;
        let tail = kept_bytes_max - head;
        let is_kept = |index: usize| index < head || index + tail >= all.len();
        all.iter().enumerate().map(|(index, byte)| is_kept(index).then_some(*byte)).collect()
    }

    /// Reads a stream piece by piece as a follower does.
    fn follow(mut after: impl FnMut(u64) -> Piece) -> Vec<Option<u8>> {
        let mut seen = Vec::new();
        loop {
            match after(seen.len() as u64) {
                Piece::Bytes(bytes) => seen.extend(bytes.into_iter().map(Some)),
                Piece::Gap(gap) => seen.extend(std::iter::repeat_n(None, usize::try_from(gap.bytes).expect("small"))),
                Piece::Nothing => return seen,
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_the_start_and_the_end_and_the_gap_is_exact(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..12),
            kept_bytes_max in 0usize..64,
        ) {
            let mut log = Log::new(kept_bytes_max as u64);
            let mut all = Vec::new();
            for piece in &pieces {
                log.push(piece);
                all.extend_from_slice(piece);
                prop_assert_eq!(follow(|offset| log.after(offset)), naive(&all, kept_bytes_max));
            }
            let kept = log.finish();
            prop_assert_eq!(kept.total_bytes, all.len() as u64);
            let sha256 = ampoule_engine::image::digest::Digest::of(&all);
            prop_assert_eq!(kept.sha256.as_str(), sha256.hex());
            let missing = kept.gap.map_or(0, |gap| gap.bytes);
            prop_assert_eq!(kept.bytes.len() as u64 + missing, all.len() as u64);
            // Cutting at characters takes at most three bytes from each side.
            let expected_missing = all.len().saturating_sub(kept_bytes_max) as u64;
            prop_assert!(missing >= expected_missing && missing <= expected_missing + 6);
            let seen = follow(|offset| kept.after(offset));
            prop_assert_eq!(seen.len(), all.len());
            prop_assert!(seen.iter().zip(&all).all(|(seen, byte)| seen.is_none_or(|seen| seen == *byte)));
        }

        #[test]
        fn text_that_was_cut_is_still_text(text in "[a-zäß€😀]{0,60}", kept_bytes_max in 8u64..64) {
            let mut log = Log::new(kept_bytes_max);
            log.push(text.as_bytes());
            let kept = log.finish();
            prop_assert!(std::str::from_utf8(&kept.bytes).is_ok());
        }
    }
}
