// Command checker reads the vectors of assignment and says where other hashes than Python's disagree.
//
//	checker DIRECTORY
//
// It exits with 0 and one line of counts when all agree, with 1 and a line for each disagreement, with
// 2 when the vectors cannot be read.
package main

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/dchest/blake2b"
	"github.com/zeebo/xxh3"
)

const buckets = 1_000_000

// hexBytes are bytes that the vectors write in hex.
type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) error {
	data, err := hex.DecodeString(string(text))
	*b = data
	return err
}

type ranges [][2]uint64

func (r ranges) has(bucket uint64) bool {
	for _, part := range r {
		if part[0] <= bucket && bucket < part[1] {
			return true
		}
	}
	return false
}

// owner is the one name whose ranges have the bucket, "" when there is none.
func owner(owners map[string]ranges, bucket uint64) string {
	var found []string
	for name, parts := range owners {
		if parts.has(bucket) {
			found = append(found, name)
		}
	}
	sort.Strings(found)
	return strings.Join(found, "+")
}

func bucketOf(salt, unit []byte) uint64 {
	data := append(append(append([]byte{}, salt...), 0), unit...)
	return xxh3.Hash(data) % buckets
}

// mac is keyed BLAKE2b, personalised.
func mac(data, key []byte, size uint8, person string) []byte {
	config := &blake2b.Config{Size: size, Key: key}
	if person != "" {
		config.Person = make([]byte, blake2b.PersonSize)
		copy(config.Person, person)
	}
	hash, err := blake2b.New(config)
	if err != nil {
		panic(err) // the key or the size is not one of BLAKE2b: the vectors are wrong
	}
	hash.Write(data)
	return hash.Sum(nil)
}

func unitHash(key, unit []byte) uint64 {
	return binary.LittleEndian.Uint64(mac(unit, key, 8, ""))
}

// tally counts what agrees and says what does not.
type tally struct{ agreed, disagreed int }

func (t *tally) check(what string, want, got any) {
	if want == got {
		t.agreed++
		return
	}
	t.disagreed++
	fmt.Printf("%s: the vectors say %v, Go says %v\n", what, want, got)
}

func read(path string, into any) {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, path+":", err)
		os.Exit(2)
	}
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: checker DIRECTORY")
		os.Exit(2)
	}
	directory := os.Args[1]
	counts := &tally{}
	var hashes hashing
	read(filepath.Join(directory, "hashing.json"), &hashes)
	hashes.check(counts)
	var assigned assignment
	read(filepath.Join(directory, "assignment.json"), &assigned)
	assigned.check(counts)
	var sealed tokens
	read(filepath.Join(directory, "tokens.json"), &sealed)
	sealed.check(counts)
	fmt.Printf("%d agree, %d disagree\n", counts.agreed, counts.disagreed)
	if counts.disagreed > 0 || counts.agreed == 0 {
		os.Exit(1)
	}
}
