"""Shared layers: one file per mechanism, holding what two or more architectures need."""
