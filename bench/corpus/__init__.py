"""What is measured on: trees and images made from public packages, kept under ``.tools/corpus``."""
