//! Body bytes as guests edit them: cheap over [`Bytes`], copied on the first edit.

use bytes::{Bytes, BytesMut};

/// The bytes of a body buffered for one filter. Pushed chunks are joined when somebody looks; nothing is copied for a guest that does
/// not look.
#[derive(Debug, Default)]
pub struct Body {
    content: Content,
    len: usize,
    changed: bool,
}

#[derive(Debug)]
enum Content {
    /// One piece, as it came.
    Whole(Bytes),
    /// Several pieces, not yet joined.
    Pieces(Vec<Bytes>),
    /// Joined or edited: ours to write.
    Owned(BytesMut),
}

impl Default for Content {
    fn default() -> Self {
        Self::Whole(Bytes::new())
    }
}

impl Body {
    /// An empty body.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a chunk at the end. Not an edit: [`Body::changed`] stays as it was.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.len += chunk.len();
        match &mut self.content {
            Content::Whole(whole) if whole.is_empty() => *whole = chunk,
            Content::Whole(whole) => self.content = Content::Pieces(vec![std::mem::take(whole), chunk]),
            Content::Pieces(pieces) => pieces.push(chunk),
            Content::Owned(owned) => owned.extend_from_slice(&chunk),
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes in one piece. Joins the chunks on first use.
    pub fn as_slice(&mut self) -> &[u8] {
        if let Content::Pieces(pieces) = &self.content {
            let mut joined = BytesMut::with_capacity(self.len);
            for piece in pieces {
                joined.extend_from_slice(piece);
            }
            self.content = Content::Owned(joined);
        }
        match &self.content {
            Content::Whole(whole) => whole,
            Content::Owned(owned) => owned,
            Content::Pieces(_) => &[], // joined just above
        }
    }

    /// `proxy_set_buffer_bytes` as the ABI's text has it: replaces `len` bytes from `start` with `data`. A `start` at or beyond the end
    /// appends; `(0, 0)` prepends; a `len` that reaches beyond the end is cut there.
    pub fn splice(&mut self, start: usize, len: usize, data: &[u8]) {
        let start = start.min(self.len);
        let end = start.saturating_add(len).min(self.len);
        if start == end && data.is_empty() {
            return;
        }
        self.changed = true;

        if start == 0 && end == self.len {
            self.content = Content::Whole(Bytes::copy_from_slice(data));
        } else if start == self.len {
            self.own().extend_from_slice(data);
        } else {
            let owned = self.own();
            let tail = owned.split_off(end);
            owned.truncate(start);
            owned.extend_from_slice(data);
            owned.unsplit(tail);
        }
        self.len = self.len - (end - start) + data.len();
    }

    /// Takes the bytes out. What is left is a new, empty, unchanged body.
    pub fn take(&mut self) -> Bytes {
        self.as_slice();
        match std::mem::take(self).content {
            Content::Whole(whole) => whole,
            Content::Owned(owned) => owned.freeze(),
            Content::Pieces(_) => Bytes::new(), // joined just above
        }
    }

    /// Whether a guest edited the bytes since the body was new or last taken.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.changed
    }

    /// The bytes, ours to write, with as few copies as their sharing allows.
    fn own(&mut self) -> &mut BytesMut {
        self.as_slice();
        if let Content::Whole(whole) = &mut self.content {
            let whole = std::mem::take(whole);
            self.content = Content::Owned(whole.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..])));
        }
        match &mut self.content {
            Content::Owned(owned) => owned,
            Content::Whole(_) | Content::Pieces(_) => unreachable!("the bytes became ours just above"),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { len: bytes.len(), content: Content::Whole(bytes), changed: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The spec's wording on a plain vector.
    fn expected(body: &[u8], start: usize, len: usize, data: &[u8]) -> Vec<u8> {
        let start = start.min(body.len());
        let end = start.saturating_add(len).min(body.len());
        [&body[..start], data, &body[end..]].concat()
    }

    #[test]
    fn splice_follows_the_text_of_set_buffer_bytes() {
        let cases: &[(&str, &str, usize, usize, &str, &str)] = &[
            ("prepend", "body", 0, 0, "x-", "x-body"),
            ("append at the end", "body", 4, 0, "-x", "body-x"),
            ("append beyond the end", "body", 99, 99, "-x", "body-x"),
            ("append at the largest start", "body", usize::MAX, usize::MAX, "-x", "body-x"),
            ("replace all", "body", 0, 4, "new", "new"),
            ("replace all with a larger length", "body", 0, usize::MAX, "new", "new"),
            ("empty it", "body", 0, 4, "", ""),
            ("middle, longer", "body", 1, 2, "OOOO", "bOOOOy"),
            ("middle, shorter", "body", 1, 2, "", "by"),
            ("insert in the middle", "body", 2, 0, "-", "bo-dy"),
            ("tail", "body", 2, 99, "x", "box"),
            ("head", "body", 0, 2, "la", "lady"),
            ("into nothing", "", 0, 0, "new", "new"),
            ("nothing into nothing", "", 0, 0, "", ""),
        ];
        for (name, body, start, len, data, want) in cases {
            let mut spliced = Body::from(Bytes::from(body.to_string()));
            spliced.splice(*start, *len, data.as_bytes());
            assert_eq!(spliced.as_slice(), want.as_bytes(), "{name}");
            assert_eq!(spliced.len(), want.len(), "{name}");
            assert_eq!(spliced.changed(), body != want, "{name}");
        }
    }

    #[test]
    fn a_shared_chunk_is_not_written_through() {
        let original = Bytes::from_static(b"static");
        let mut body = Body::from(original.clone());
        body.splice(0, 1, b"S");
        assert_eq!((&original[..], &body.take()[..]), (&b"static"[..], &b"Static"[..]));
    }

    #[test]
    fn take_gives_a_single_chunk_back_without_a_copy_and_starts_anew() {
        let original = Bytes::from(vec![7; 100]);
        let mut body = Body::from(original.clone());
        let taken = body.take();
        assert_eq!(taken.as_ptr(), original.as_ptr());
        assert!(body.is_empty() && !body.changed());
    }

    #[test]
    fn pushes_do_not_count_as_edits() {
        let mut body = Body::new();
        for chunk in ["a", "", "b", "c"] {
            body.push(Bytes::from(chunk));
        }
        assert_eq!(body.as_slice(), b"abc");
        assert_eq!((body.len(), body.changed()), (3, false));
        body.push(Bytes::from("d"));
        assert_eq!(body.take(), "abcd");
    }

    proptest! {
        #[test]
        fn any_edits_equal_the_same_edits_on_a_vector(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..5),
            edits in proptest::collection::vec((0usize..80, 0usize..80, proptest::collection::vec(any::<u8>(), 0..20)), 0..8),
        ) {
            let mut body = Body::new();
            let mut model = chunks.concat();
            for chunk in chunks {
                body.push(Bytes::from(chunk));
            }
            for (start, len, data) in edits {
                body.splice(start, len, &data);
                model = expected(&model, start, len, &data);
                prop_assert_eq!(body.len(), model.len());
            }
            prop_assert_eq!(body.take(), model);
        }
    }
}
