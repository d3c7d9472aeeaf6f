//! The pages of a column, each checked before the library allocates by its header.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::sync::Arc;

use ::parquet::basic::Encoding;
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::errors::{ParquetError, Result};
use ::parquet::file::metadata::ColumnChunkMetaData;
use ::parquet::file::reader::{ChunkReader, Length, SerializedPageReader};
use bytes::Bytes;

/// Largest unpacked page. Writers begin a new page after a megabyte, or after a single text that is larger.
const PAGE: u64 = 1 << 28;
/// Most values in a column of a row group.
const VALUES: u64 = 1 << 24;

/// The encodings that writers use for texts unless told otherwise.
const READ: [Encoding; 3] = [
    Encoding::PLAIN,
    Encoding::PLAIN_DICTIONARY,
    Encoding::RLE_DICTIONARY,
];

/// A file whose page headers are checked.
pub(super) struct Source(File);

impl Source {
    pub fn new(file: File) -> Self {
        Self(file)
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        Length::len(&self.0)
    }
}

impl ChunkReader for Source {
    type T = BufReader<File>;

    /// A reader that starts at a page's header: [`Pages`] makes the library call this for page headers only.
    fn get_read(&self, start: u64) -> Result<Self::T> {
        let mut reader = self.0.get_read(start)?;
        match unpacked(reader.fill_buf()?) {
            Some(size) if size <= PAGE => Ok(reader),
            Some(size) => Err(refuse(format!("a page of {size} bytes"))),
            None => Err(refuse("a page without a header".into())),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.0.get_bytes(start, length)
    }
}

fn refuse(what: String) -> ParquetError {
    ParquetError::General(what)
}

/// The unpacked size in a page's header: the second field of a struct in Thrift's compact protocol, both integers.
fn unpacked(header: &[u8]) -> Option<u64> {
    let (_, rest) = integer(header)?;
    integer(rest).map(|(size, _)| size)
}

/// A field that is an integer of 32 bits and not negative, and what follows it.
fn integer(field: &[u8]) -> Option<(u64, &[u8])> {
    let digits = field.strip_prefix(&[0x15])?;
    let mut value = 0;
    for (index, digit) in digits.iter().enumerate().take(5) {
        value |= u64::from(digit & 0x7f) << (7 * index);
        if digit & 0x80 == 0 {
            // The last bit is the sign.
            return (value & 1 == 0).then_some((value >> 1, &digits[index + 1..]));
        }
    }
    None
}

/// The pages of a column in a row group.
pub(super) struct Pages {
    inner: SerializedPageReader<Source>,
    /// Values in the pages so far.
    seen: u64,
    /// Values in all pages.
    all: u64,
}

impl Pages {
    pub fn open(
        source: &Arc<Source>,
        chunk: &ColumnChunkMetaData,
        rows: i64,
    ) -> std::result::Result<Self, String> {
        let damaged = |what: String| format!("damaged ({what}); {}", super::REMEDY);
        let offsets = [
            Some(chunk.data_page_offset()),
            chunk.dictionary_page_offset(),
            Some(chunk.compressed_size()),
            Some(rows),
        ];
        if offsets.into_iter().flatten().any(|number| number < 0) {
            return Err(damaged("a negative size".into()));
        }
        let all = u64::try_from(chunk.num_values()).map_err(|e| damaged(e.to_string()))?;
        if all > VALUES {
            return Err(format!(
                "{all} values, which is more than is read of a row group ({VALUES}); write smaller row groups"
            ));
        }
        let inner = SerializedPageReader::new(Arc::clone(source), chunk, rows as usize, None);
        Ok(Self {
            inner: inner.map_err(|e| damaged(e.to_string()))?,
            seen: 0,
            all,
        })
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.inner.get_next_page()?;
        match &page {
            // Each text of a dictionary begins with its length, in 4 bytes.
            Some(Page::DictionaryPage {
                buf, num_values, ..
            }) if u64::from(*num_values) * 4 > buf.len() as u64 => {
                return Err(refuse(format!("a dictionary of {num_values} texts")));
            }
            None | Some(Page::DictionaryPage { .. }) => {}
            // The library allocates by numbers inside the other encodings' data.
            Some(page) if !READ.contains(&page.encoding()) => {
                return Err(refuse(format!(
                    "its texts are encoded with {}, and PLAIN and dictionaries are read",
                    page.encoding()
                )));
            }
            Some(page) => {
                self.seen += u64::from(page.num_values());
                if self.seen > self.all {
                    return Err(refuse(format!("more than {} values", self.all)));
                }
            }
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        Err(refuse("pages are read in their order".into()))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        Err(refuse("pages are read in their order".into()))
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        Ok(self.seen == self.all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unpacked_size_of_a_page_is_read_from_its_header() {
        assert_eq!(unpacked(&[0x15, 0, 0x15, 0x0a, 0x15, 2]), Some(5));
        assert_eq!(unpacked(&[0x15, 4, 0x15, 0x80, 0x01, 0x15]), Some(64));
        for damaged in [
            &[][..],
            &[0x15],
            &[0x15, 0, 0x15, 0x80],
            &[0x15, 0, 0x15, 3],
            &[0x25, 0, 0x15, 2],
        ] {
            assert_eq!(unpacked(damaged), None, "{damaged:?}");
        }
        assert_eq!(
            unpacked(&[0x15, 0, 0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f]),
            Some((1 << 31) - 1)
        );
    }
}
