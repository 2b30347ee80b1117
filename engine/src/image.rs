//! Images: names, content by digest, unpacked layers.
