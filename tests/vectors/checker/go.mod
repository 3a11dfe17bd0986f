// Checks the vectors with hashes that are not Python's: see ../README.md.
module turnout.test/vectors

go 1.24

require (
	github.com/dchest/blake2b v1.0.0
	github.com/zeebo/xxh3 v1.0.2
)

require github.com/klauspost/cpuid/v2 v2.0.9 // indirect
