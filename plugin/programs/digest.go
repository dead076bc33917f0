package programs

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
)

// Digest returns the SHA-256 of an object file, to tell whether it is still the one that was loaded.
func Digest(path string) (digest [sha256.Size]byte, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return digest, fmt.Errorf("reading object: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxSize {
		return digest, fmt.Errorf("%w: %s is no regular file of at most %d bytes", ErrObject, path, maxSize)
	}
	file, err := os.Open(path)
	if err != nil {
		return digest, fmt.Errorf("reading object: %w", err)
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return digest, fmt.Errorf("reading object %s: %w", path, err)
	}
	return [sha256.Size]byte(hash.Sum(nil)), nil
}
