package main

import (
	"fmt"
	"sort"
	"strings"

	"encoding/hex"

	"github.com/zeebo/xxh3"
)

// hashing is hashing.json.
type hashing struct {
	XXH3 struct {
		Cases []struct {
			Length int
			Hash   uint64
		}
	} `json:"xxh3_64"`
	UnitHash struct {
		Cases []struct {
			Key, Unit hexBytes
			Digest    string
			Hash      uint64
		}
	} `json:"unit_hash"`
	Bucket struct {
		Cases []struct {
			Salt, Unit hexBytes
			Bucket     uint64
		}
	}
	RequestHash struct {
		Cases []struct {
			RequestID hexBytes `json:"request_id"`
			Hash      uint64
		}
	} `json:"request_hash"`
}

func (h *hashing) check(t *tally) {
	for _, c := range h.XXH3.Cases {
		t.check(fmt.Sprint("xxh3 of length ", c.Length), c.Hash, xxh3.Hash(selfTest(c.Length)))
	}
	for i, c := range h.UnitHash.Cases {
		t.check(fmt.Sprint("unit hash ", i), c.Hash, unitHash(c.Key, c.Unit))
		t.check(fmt.Sprint("unit digest ", i), c.Digest, hex.EncodeToString(mac(c.Unit, c.Key, 8, "")))
	}
	for i, c := range h.Bucket.Cases {
		t.check(fmt.Sprint("bucket ", i), c.Bucket, bucketOf(c.Salt, c.Unit))
	}
	for i, c := range h.RequestHash.Cases {
		var hash uint64
		if len(c.RequestID) > 0 {
			hash = xxh3.Hash(c.RequestID)
		}
		t.check(fmt.Sprint("request hash ", i), c.Hash, hash)
	}
}

// selfTest is the buffer of xxHash's own self-test.
func selfTest(length int) []byte {
	data := make([]byte, length)
	state := uint64(2654435761)
	for i := range data {
		data[i] = byte(state >> 56)
		state *= 11400714785074694797
	}
	return data
}

type experiment struct {
	Name          string
	Epoch         uint64
	Layer         string
	LayerSalt     string `json:"layer_salt"`
	LayerRanges   ranges `json:"layer_ranges"`
	HoldoutSalt   string `json:"holdout_salt"`
	HoldoutRanges ranges `json:"holdout_ranges"`
	Salt          string
	Variants      map[string]ranges
}

// assignment is assignment.json.
type assignment struct {
	Variants struct {
		Worlds []struct {
			Name, Salt string
			Variants   map[string]ranges
			Cases      []struct {
				Unit    hexBytes
				Bucket  uint64
				Variant string
			}
		}
	}
	Layer struct {
		Salt        string
		Experiments map[string]ranges
		Cases       []struct {
			Unit       hexBytes
			Bucket     uint64
			Experiment string
		}
	}
	Holdout struct {
		Salt   string
		Ranges ranges
		Cases  []struct {
			Unit   hexBytes
			Bucket uint64
			Held   bool
		}
	}
	Percentage struct {
		Worlds []struct {
			Salt    string
			Buckets uint64
			Cases   []struct {
				Unit hexBytes
				In   bool
			}
		}
	}
	Stamps struct {
		Key         hexBytes
		Experiments []experiment
		Cases       []struct {
			Unit  hexBytes
			Stamp string
		}
	}
}

func (a *assignment) check(t *tally) {
	for _, world := range a.Variants.Worlds {
		for i, c := range world.Cases {
			name := fmt.Sprintf("variants %s, case %d", world.Name, i)
			bucket := bucketOf([]byte(world.Salt), c.Unit)
			t.check(name, c.Bucket, bucket)
			t.check(name, c.Variant, owner(world.Variants, bucket))
		}
	}
	for i, c := range a.Layer.Cases {
		bucket := bucketOf([]byte(a.Layer.Salt), c.Unit)
		t.check(fmt.Sprint("layer, case ", i), c.Bucket, bucket)
		t.check(fmt.Sprint("layer, case ", i), c.Experiment, owner(a.Layer.Experiments, bucket))
	}
	for i, c := range a.Holdout.Cases {
		bucket := bucketOf([]byte(a.Holdout.Salt), c.Unit)
		t.check(fmt.Sprint("holdout, case ", i), c.Bucket, bucket)
		t.check(fmt.Sprint("holdout, case ", i), c.Held, a.Holdout.Ranges.has(bucket))
	}
	for _, world := range a.Percentage.Worlds {
		for i, c := range world.Cases {
			in := bucketOf([]byte(world.Salt), c.Unit) < world.Buckets
			t.check(fmt.Sprintf("percentage %d, case %d", world.Buckets, i), c.In, in)
		}
	}
	experiments := append([]experiment{}, a.Stamps.Experiments...)
	sort.SliceStable(experiments, func(i, j int) bool {
		one, two := experiments[i].Layer, experiments[j].Layer
		if (one == "models") != (two == "models") {
			return one == "models"
		}
		return one < two
	})
	for i, c := range a.Stamps.Cases {
		t.check(fmt.Sprint("stamps, case ", i), c.Stamp, stamp(a.Stamps.Key, experiments, c.Unit))
	}
}

// stamp is the whole header for one unit.
func stamp(key []byte, experiments []experiment, unit []byte) string {
	var entries []string
	for _, e := range experiments {
		if e.HoldoutRanges.has(bucketOf([]byte(e.HoldoutSalt), unit)) {
			continue
		}
		if len(e.LayerRanges) > 0 && !e.LayerRanges.has(bucketOf([]byte(e.LayerSalt), unit)) {
			continue
		}
		variant := owner(e.Variants, bucketOf([]byte(e.Salt), unit))
		entries = append(entries, fmt.Sprintf("%s;%d;%s;0;%016x", e.Name, e.Epoch, variant, unitHash(key, unit)))
	}
	return strings.Join(entries, ",")
}
