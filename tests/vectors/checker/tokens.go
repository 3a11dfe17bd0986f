package main

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

const (
	tokenBytesMax   = 1024
	tokenSecondsMax = 24 * 3600
	clockSkew       = 60
	hopSecondsMax   = 60
)

var encoding = base64.RawURLEncoding.Strict()

// tokens is tokens.json.
type tokens struct {
	ForceGood struct {
		Cases []struct {
			Name                        string
			Key                         hexBytes
			Tenant, Experiment, Variant string
			Unit                        hexBytes
			Issued, Expires, Now        uint64
			Token                       string
		}
	} `json:"force_good"`
	ForceBad struct {
		Key    hexBytes
		Tenant string
		Now    uint64
		Cases  []struct{ Name, Token string }
	} `json:"force_bad"`
	Hop struct {
		Cases []struct {
			Name      string
			Key       hexBytes
			Tenant    string
			RequestID hexBytes `json:"request_id"`
			Seconds   *uint64
			Now       uint64
			Mark      string
			Valid     bool
		}
	}
}

func (v *tokens) check(t *tally) {
	for _, c := range v.ForceGood.Cases {
		payload := fmt.Sprintf("%s;%s;%s;%d;%d;%s",
			c.Tenant, c.Experiment, c.Variant, c.Issued, c.Expires, encoding.EncodeToString(c.Unit))
		seal := mac([]byte(payload), c.Key, 16, "turnout-force")
		minted := "v1." + encoding.EncodeToString([]byte(payload)) + "." + encoding.EncodeToString(seal)
		t.check("minted token "+c.Name, c.Token, minted)
		experiment, variant, unit, ok := believed(c.Token, c.Key, c.Tenant, c.Now)
		t.check("good token "+c.Name, true, ok)
		said := [3]string{c.Experiment, c.Variant, string(c.Unit)}
		t.check("what token "+c.Name+" says", said, [3]string{experiment, variant, string(unit)})
	}
	for _, c := range v.ForceBad.Cases {
		_, _, _, ok := believed(c.Token, v.ForceBad.Key, v.ForceBad.Tenant, v.ForceBad.Now)
		t.check("bad token "+c.Name, false, ok)
	}
	for _, c := range v.Hop.Cases {
		if c.Seconds != nil {
			t.check("minted mark "+c.Name, c.Mark, mark(*c.Seconds, c.Tenant, c.RequestID, c.Key))
		}
		t.check("mark "+c.Name, c.Valid, decided(c.Mark, c.Tenant, c.RequestID, c.Key, c.Now))
	}
}

// believed reads a force token; ok only when all of it is as it must be.
func believed(token string, key []byte, tenant string, now uint64) (experiment, variant string, unit []byte, ok bool) {
	parts := strings.Split(token, ".")
	if len(token) > tokenBytesMax || len(parts) != 3 || parts[0] != "v1" {
		return
	}
	payload, err := encoding.DecodeString(parts[1])
	if err != nil {
		return
	}
	seal := encoding.EncodeToString(mac(payload, key, 16, "turnout-force"))
	if subtle.ConstantTimeCompare([]byte(seal), []byte(parts[2])) != 1 {
		return
	}
	fields := strings.Split(string(payload), ";")
	if len(fields) != 6 || fields[0] != tenant {
		return
	}
	// ParseUint takes digits alone.
	issued, err1 := strconv.ParseUint(fields[3], 10, 62)
	expires, err2 := strconv.ParseUint(fields[4], 10, 62)
	unit, err3 := encoding.DecodeString(fields[5])
	if err1 != nil || err2 != nil || err3 != nil {
		return
	}
	if issued > now+clockSkew || expires <= now || expires <= issued || expires-issued > tokenSecondsMax {
		return
	}
	return fields[1], fields[2], unit, true
}

func mark(seconds uint64, tenant string, requestID, key []byte) string {
	text := strconv.FormatUint(seconds, 16)
	return text + "." + hex.EncodeToString(seal(text, tenant, requestID, key))
}

func seal(seconds, tenant string, requestID, key []byte) []byte {
	data := append([]byte(seconds+"\x00"+tenant+"\x00"), requestID...)
	return mac(data, key, 8, "turnout-hop")
}

// decided says whether a hop mark is one of ours, for this request and of this minute.
func decided(mark, tenant string, requestID, key []byte, now uint64) bool {
	text, given, found := strings.Cut(mark, ".")
	if !found || strings.ToLower(text) != text {
		return false
	}
	seconds, err := strconv.ParseUint(text, 16, 62)
	if err != nil {
		return false
	}
	wanted := hex.EncodeToString(seal(text, tenant, requestID, key))
	if subtle.ConstantTimeCompare([]byte(wanted), []byte(given)) != 1 {
		return false
	}
	return seconds+hopSecondsMax >= now && now+hopSecondsMax >= seconds
}
