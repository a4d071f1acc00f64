"""Images of `cloche do`: found, unpacked once, kept by digest, described as an OCI bundle."""
