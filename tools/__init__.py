"""Programs that measure the promises of flaxres; see README.md in this folder."""
