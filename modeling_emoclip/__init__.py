# SPDX-License-Identifier: Apache-2.0
"""The files of an EmoCLIP model repository; `import emoclip` registers their classes with transformers."""
