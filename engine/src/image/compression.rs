//! Compression and decompression of archives. When reading, the format is told by the first bytes, and the output is
//! bounded in size and in ratio. Compressed data is never handed to another program.

use std::io::{self, BufReader, Read, Write};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

/// Longest prefix that tells a format.
const MAGIC_BYTES: usize = 6;
/// Bytes read from the source at a time.
const BUFFER_BYTES: usize = 64 * 1024;
/// Largest window that a zstd frame may ask for, as a power of two: 128 MiB, what `zstd --long` makes.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Most memory that an xz stream may ask for, in KiB: 128 MiB, twice what `xz -9` makes.
const XZ_MEMORY_KIB_MAX: u32 = 128 * 1024;

/// How hard zstd tries; its own default.
const ZSTD_LEVEL: i32 = 3;

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Not at all.
    Plain,
    /// gzip, one or several members.
    Gzip,
    /// Zstandard, one or several frames.
    Zstd,
    /// bzip2, which is only read.
    Bzip2,
    /// xz, which is only read.
    Xz,
}

impl Format {
    /// Tells the format from the first bytes of a stream. `Err` names a format that is known and not supported.
    fn of(head: &[u8]) -> Result<Format, &'static str> {
        match head {
            [0x1f, 0x8b, ..] => Ok(Format::Gzip),
            // A frame, or a skippable frame in front of one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Format::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Ok(Format::Xz),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Ok(Format::Bzip2),
            [0x04, 0x22, 0x4d, 0x18, ..] => Err("lz4"),
            [b'P', b'K', 3, 4, ..] => Err("zip"),
            _ => Ok(Format::Plain),
        }
    }
}

/// How much may come out of a compressed stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most bytes in all.
    pub bytes_max: u64,
    /// Most bytes for each byte of input, once `ratio_from_bytes` have come out.
    pub ratio_max: u64,
    /// Output below this many bytes is not measured: small files of zeros compress well and harm nobody.
    pub ratio_from_bytes: u64,
}

impl Default for Bounds {
    /// 16 GiB; 1000 to 1 past 64 MiB.
    fn default() -> Bounds {
        Bounds { bytes_max: 16 << 30, ratio_max: 1000, ratio_from_bytes: 64 << 20 }
    }
}

/// Why decompression was stopped; the inner error of the `io::Error` that `Decompressed` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A compression that we do not undo.
    #[error(
        "the archive is compressed with {0}, which is not supported\nhint: give it as plain tar, or compressed with gzip or zstd"
    )]
    Unsupported(&'static str),
    /// More than `Bounds::bytes_max`.
    #[error("the archive is larger than {0} bytes when unpacked")]
    TooLarge(u64),
    /// More than `Bounds::ratio_max`.
    #[error("the archive grows to more than {0} times its size when unpacked, which no honest archive does")]
    Ratio(u64),
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, refused)
    }
}

/// The uncompressed bytes of a stream.
pub struct Decompressed<R: Read> {
    decoder: Decoder<R>,
    bounds: Bounds,
    produced: u64,
}

enum Decoder<R: Read> {
    Plain(BufReader<Source<R>>),
    Gzip(Box<MultiGzDecoder<BufReader<Source<R>>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<Source<R>>>>),
    Bzip2(Box<MultiBzDecoder<BufReader<Source<R>>>>),
    Xz(Box<XzReader<BufReader<Source<R>>>>),
}

impl<R: Read> Decompressed<R> {
    /// Reads the first bytes of `input` and prepares to decompress it.
    ///
    /// # Errors
    /// Those of `input`, and `Refused::Unsupported`.
    pub fn new(mut input: R, bounds: Bounds) -> io::Result<Decompressed<R>> {
        let head = read_head(&mut input)?;
        let format = Format::of(&head).map_err(Refused::Unsupported)?;
        let source = BufReader::with_capacity(BUFFER_BYTES, Source { head, head_read: 0, input, taken: 0 });
        let decoder = match format {
            Format::Plain => Decoder::Plain(source),
            Format::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(source))),
            Format::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Decoder::Zstd(Box::new(decoder))
            }
            Format::Bzip2 => Decoder::Bzip2(Box::new(MultiBzDecoder::new(source))),
            Format::Xz => Decoder::Xz(Box::new(XzReader::new_mem_limit(source, true, XZ_MEMORY_KIB_MAX))),
        };
        Ok(Decompressed { decoder, bounds, produced: 0 })
    }

    /// How the input is compressed.
    pub fn format(&self) -> Format {
        match self.decoder {
            Decoder::Plain(_) => Format::Plain,
            Decoder::Gzip(_) => Format::Gzip,
            Decoder::Zstd(_) => Format::Zstd,
            Decoder::Bzip2(_) => Format::Bzip2,
            Decoder::Xz(_) => Format::Xz,
        }
    }

    /// Uncompressed bytes that were given out so far.
    pub fn produced(&self) -> u64 {
        self.produced
    }

    fn taken(&self) -> u64 {
        match &self.decoder {
            Decoder::Plain(source) => source.get_ref().taken,
            Decoder::Gzip(decoder) => decoder.get_ref().get_ref().taken,
            Decoder::Zstd(decoder) => decoder.get_ref().get_ref().taken,
            Decoder::Bzip2(decoder) => decoder.get_ref().get_ref().taken,
            Decoder::Xz(decoder) => decoder.inner().get_ref().taken,
        }
    }

    fn check_bounds(&self) -> Result<(), Refused> {
        let Bounds { bytes_max, ratio_max, ratio_from_bytes } = self.bounds;
        if self.produced > bytes_max {
            return Err(Refused::TooLarge(bytes_max));
        }
        if self.produced > ratio_from_bytes && self.produced > self.taken().saturating_mul(ratio_max) {
            return Err(Refused::Ratio(ratio_max));
        }
        Ok(())
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.decoder {
            Decoder::Plain(source) => source.read(buffer),
            Decoder::Gzip(decoder) => decoder.read(buffer),
            Decoder::Zstd(decoder) => decoder.read(buffer),
            Decoder::Bzip2(decoder) => decoder.read(buffer),
            Decoder::Xz(decoder) => decoder.read(buffer),
        }?;
        self.produced += count as u64;
        self.check_bounds()?;
        Ok(count)
    }
}

/// A writer that compresses what passes. The same bytes give the same bytes: no time and no name is in them.
pub struct Compressed<W: Write>(Encoder<W>);

enum Encoder<W: Write> {
    Plain(W),
    Gzip(Box<flate2::write::GzEncoder<W>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, W>>),
}

impl<W: Write> Compressed<W> {
    /// Writes to `output`.
    ///
    /// # Errors
    /// No memory for zstd; a format that is only read.
    pub fn new(output: W, format: Format) -> io::Result<Compressed<W>> {
        Ok(Compressed(match format {
            Format::Plain => Encoder::Plain(output),
            Format::Gzip => {
                Encoder::Gzip(Box::new(flate2::write::GzEncoder::new(output, flate2::Compression::default())))
            }
            Format::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(output, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Encoder::Zstd(Box::new(encoder))
            }
            Format::Bzip2 | Format::Xz => return Err(io::ErrorKind::Unsupported.into()),
        }))
    }

    /// Writes what is left; without this the stream is not whole.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(self) -> io::Result<W> {
        let mut output = match self.0 {
            Encoder::Plain(output) => output,
            Encoder::Gzip(encoder) => encoder.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        };
        output.flush()?;
        Ok(output)
    }
}

impl<W: Write> Write for Compressed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Encoder::Plain(output) => output.write(bytes),
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // Encoders are not flushed in between: that would only make the stream longer.
        match &mut self.0 {
            Encoder::Plain(output) => output.flush(),
            Encoder::Gzip(_) | Encoder::Zstd(_) => Ok(()),
        }
    }
}

/// The input with the bytes that were looked at put back in front, and a count of what was taken.
struct Source<R> {
    head: Vec<u8>,
    head_read: usize,
    input: R,
    taken: u64,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = if self.head_read < self.head.len() {
            let count = (&self.head[self.head_read..]).read(buffer)?;
            self.head_read += count;
            count
        } else {
            self.input.read(buffer)?
        };
        self.taken += count as u64;
        Ok(count)
    }
}

/// Up to `MAGIC_BYTES` from the start of `input`; fewer only at its end.
fn read_head(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(MAGIC_BYTES);
    input.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut head)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// A line, as `xz -9` and `bzip2` write it.
    const XZ: &str =
        "/Td6WFoAAATm1rRGAgAhARwAAAAQz1jMAQAXaGVsbG8sIGNvbXByZXNzZWQgd29ybGQKADFQs+vV2SbHAAEwGI4brOwftvN9AQAAAAAEWVo=";
    const BZIP2: &str = "QlpoOTFBWSZTWYtyIj8AAAVRgAAQQAQORtiAIAAimj0nqek9IQAABuEOlpqBJirdzR98XckU4UJCLciI/A==";

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn check(packed: &[u8], format: Format, expected: &[u8]) {
        let mut reader = Decompressed::new(packed, Bounds::default()).unwrap();
        assert_eq!(reader.format(), format);
        let mut data = Vec::new();
        reader.read_to_end(&mut data).unwrap();
        assert_eq!(data, expected);
        assert_eq!(reader.produced(), expected.len() as u64);
    }

    #[test]
    fn each_format_is_told_by_its_first_bytes() {
        check(b"plain", Format::Plain, b"plain");
        check(b"", Format::Plain, b"");
        check(&gzip(b"hello"), Format::Gzip, b"hello");
        check(&zstd::encode_all(&b"hello"[..], 3).unwrap(), Format::Zstd, b"hello");
    }

    #[test]
    fn what_xz_and_bzip2_wrote_is_read_whole_several_streams_included() {
        let read = |text: &str| STANDARD.decode(text).unwrap();
        let word = b"hello, compressed world\n";
        let samples = [(Format::Xz, read(XZ)), (Format::Bzip2, read(BZIP2))];
        for (format, packed) in samples {
            check(&packed, format, word);
            check(&[packed.as_slice(), &packed].concat(), format, &[word, &word[..]].concat());
            let cut = &packed[..packed.len() - 3];
            Decompressed::new(cut, Bounds::default()).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
        }
    }

    #[test]
    fn what_is_compressed_is_what_is_read_and_always_the_same() {
        for format in [Format::Plain, Format::Gzip, Format::Zstd] {
            let packed = || {
                let mut writer = Compressed::new(Vec::new(), format).unwrap();
                writer.write_all(&[7; 100_000]).unwrap();
                writer.flush().unwrap();
                writer.write_all(b"end").unwrap();
                writer.finish().unwrap()
            };
            check(&packed(), format, &[&[7; 100_000][..], b"end"].concat());
            assert_eq!(packed(), packed());
        }
    }

    #[test]
    fn concatenated_members_are_one_stream() {
        check(&[gzip(b"one"), gzip(b"two")].concat(), Format::Gzip, b"onetwo");
        let frame = |data: &[u8]| zstd::encode_all(data, 3).unwrap();
        check(&[frame(b"one"), frame(b"two")].concat(), Format::Zstd, b"onetwo");
    }

    #[test]
    fn a_known_but_unsupported_format_is_named() {
        let error = Decompressed::new(&b"\x04\x22\x4d\x18rest"[..], Bounds::default()).err().unwrap();
        assert!(error.to_string().contains("compressed with lz4"), "{error}");
    }

    #[test]
    fn truncated_input_is_an_error() {
        for packed in [gzip(&[7; 10_000]), zstd::encode_all(&[7; 10_000][..], 3).unwrap()] {
            let cut = &packed[..packed.len() - 3];
            let mut reader = Decompressed::new(cut, Bounds::default()).unwrap();
            let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        }
    }

    fn refusal(packed: &[u8], bounds: Bounds) -> Refused {
        let mut reader = Decompressed::new(packed, bounds).unwrap();
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        *error.get_ref().unwrap().downcast_ref::<Refused>().unwrap()
    }

    #[test]
    fn a_bomb_is_stopped_by_bytes_and_by_ratio() {
        let zeros = vec![0; 8 << 20];
        let bounds = Bounds { bytes_max: 1 << 20, ..Bounds::default() };
        assert_eq!(refusal(&gzip(&zeros), bounds), Refused::TooLarge(1 << 20));
        let bounds = Bounds { ratio_max: 100, ratio_from_bytes: 1 << 20, ..Bounds::default() };
        assert_eq!(refusal(&gzip(&zeros), bounds), Refused::Ratio(100));
        assert_eq!(refusal(&zstd::encode_all(&zeros[..], 3).unwrap(), bounds), Refused::Ratio(100));
    }

    #[test]
    fn a_zstd_frame_cannot_ask_for_a_huge_window() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.write_all(&[1; 1000]).unwrap();
        let packed = encoder.finish().unwrap();
        let mut reader = Decompressed::new(&packed[..], Bounds::default()).unwrap();
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
    }
}
